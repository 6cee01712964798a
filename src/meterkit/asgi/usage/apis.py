"""The APIs by the words of the plans file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.usage.anthropic import ANTHROPIC
from meterkit.asgi.usage.bedrock import BEDROCK
from meterkit.asgi.usage.cohere import COHERE
from meterkit.asgi.usage.gemini import GEMINI
from meterkit.asgi.usage.ollama import OLLAMA
from meterkit.asgi.usage.openai import MISTRAL, OPENAI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.asgi.usage.api import Api

__all__ = ["AUTO", "BY_NAME"]

# Mistral answers in OpenAI's shape and is not told apart from it.
AUTO: Final[tuple[Api, ...]] = (OPENAI, ANTHROPIC, GEMINI, BEDROCK, COHERE, OLLAMA)
BY_NAME: Final[Mapping[str, tuple[Api, ...]]] = {
    "auto": AUTO,
    **{api.name: (api,) for api in (*AUTO, MISTRAL)},
}
