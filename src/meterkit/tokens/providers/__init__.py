"""What each provider of language models reports, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.providers.anthropic import ANTHROPIC
from meterkit.tokens.providers.bedrock import BEDROCK
from meterkit.tokens.providers.cohere import COHERE
from meterkit.tokens.providers.gemini import GEMINI
from meterkit.tokens.providers.mistral import MISTRAL, MISTRAL_ALONE
from meterkit.tokens.providers.ollama import OLLAMA
from meterkit.tokens.providers.openai import OPENAI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.tokens.providers.api import Api

__all__ = ["AUTO", "BY_NAME"]

# Most of Mistral's responses have OpenAI's shape and are not told apart from it.
AUTO: Final[tuple[Api, ...]] = (MISTRAL_ALONE, OPENAI, ANTHROPIC, GEMINI, BEDROCK, COHERE, OLLAMA)
BY_NAME: Final[Mapping[str, tuple[Api, ...]]] = {
    "auto": AUTO,
    **{api.name: (api,) for api in (*AUTO, MISTRAL)},
}
"""The APIs by the words of the plans file."""
