"""Readers of each provider's usage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llm_usage.event_marks import may_have_usage
from llm_usage.providers.anthropic import ANTHROPIC
from llm_usage.providers.bedrock import BEDROCK
from llm_usage.providers.cohere import COHERE
from llm_usage.providers.gemini import GEMINI
from llm_usage.providers.mistral import MISTRAL, MISTRAL_ALONE
from llm_usage.providers.ollama import OLLAMA
from llm_usage.providers.openai import OPENAI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_usage.providers.reader_interface import ProviderApi

__all__ = ["AUTO", "BY_NAME", "may_be_known"]

# Most of Mistral's responses have OpenAI's shape and are not told apart from it.
AUTO: Final[tuple[ProviderApi, ...]] = (MISTRAL_ALONE, OPENAI, ANTHROPIC, GEMINI, BEDROCK, COHERE, OLLAMA)
BY_NAME: Final[Mapping[str, tuple[ProviderApi, ...]]] = {
    "auto": AUTO,
    **{api.name: (api,) for api in (*AUTO, MISTRAL)},
}
"""The APIs by their names, and those that ``auto`` tries in their order."""
_MARK: Final = re.compile(b"|".join(re.escape(mark) for api in AUTO for mark in api.marks))


def may_be_known(data: bytes) -> bool:
    """Whether an event, or one among several, may tell whose response this is, or hold figures."""
    return may_have_usage(data) or _MARK.search(data) is not None
