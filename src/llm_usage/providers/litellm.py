"""LiteLLM: it answers in the shape of OpenAI for all providers, and keeps the provider's name beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.json_values import table, text
from llm_usage.plain_values import instance_members
from llm_usage.providers.openai import OPENAI
from llm_usage.providers.provider_names import provider_of
from llm_usage.providers.reader_interface import ProviderApi

if TYPE_CHECKING:
    from llm_usage.json_values import Table
    from llm_usage.reported_calls import EventUsage

_ASKED: Final = "provider asked by LiteLLM"


def with_provider(obj: object, event: Table) -> Table:
    """Add the provider that LiteLLM has asked: it answers in the shape of OpenAI for all of them."""
    private = _private_members(obj)
    hidden = table(private.get("_hidden_params"))
    asked = None if hidden is None else text(hidden.get("custom_llm_provider"))
    return event if asked is None else {**event, _ASKED: asked}


def _private_members(obj: object) -> Table:
    try:
        found = object.__getattribute__(obj, "__pydantic_private__")
    except AttributeError:
        return instance_members(obj)
    return table(found) or {}


def _routed_usage(event: Table, strict: bool) -> EventUsage | None:
    if _ASKED not in event:
        return None
    found = OPENAI.usage_in(event, strict)
    return None if found is None else replace(found, provider=provider_of(event[_ASKED]))


def _is_routed(event: Table) -> bool:
    return _ASKED in event and OPENAI.recognises(event)


LITELLM: Final = ProviderApi(name="litellm", provider=None, usage_in=_routed_usage, recognises=_is_routed)
