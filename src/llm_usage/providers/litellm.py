"""Objects of LiteLLM's SDK: of OpenAI's shape for all providers; a private member names the provider asked.

The bodies of LiteLLM's proxy lack that member: they are read as OpenAI's.
"""

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

_PROVIDER_ASKED: Final = "provider asked by LiteLLM"
"""Member that is added to an event; with blanks, so that no API has one of this name."""


def add_provider_asked(obj: object, event: Table) -> Table:
    """Add the provider that LiteLLM asked to an event, for :data:`LITELLM`; nothing for other SDKs.

    Args:
        obj: an object of any SDK.
        event: its public members.
    """
    hidden = table(_private_members(obj).get("_hidden_params"))
    provider = None if hidden is None else text(hidden.get("custom_llm_provider"))
    return event if provider is None else {**event, _PROVIDER_ASKED: provider}


def _private_members(obj: object) -> Table:
    """Private members of a pydantic model, which keeps them apart; of other objects, all members."""
    try:
        found = object.__getattribute__(obj, "__pydantic_private__")
    except AttributeError:
        return instance_members(obj)
    return table(found) or {}


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    if _PROVIDER_ASKED not in event:
        return None
    found = OPENAI.usage_in(event, strict)
    return None if found is None else replace(found, provider=provider_of(event[_PROVIDER_ASKED]))


def _recognises(event: Table) -> bool:
    return _PROVIDER_ASKED in event and OPENAI.recognises(event)


LITELLM: Final = ProviderApi(name="litellm", provider=None, usage_in=_usage_in, recognises=_recognises)
