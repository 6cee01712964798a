"""Usage as frameworks around the providers' SDKs report it: LangChain, pydantic-ai, the agents SDK of OpenAI.

https://docs.langchain.com/oss/python/langchain/messages
https://ai.pydantic.dev/api/usage/
https://openai.github.io/openai-agents-python/usage/
"""

from __future__ import annotations

from contextlib import suppress
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.plain import held_by, kind_of, table_of
from meterkit.tokens.providers.api import Api
from meterkit.tokens.shape import dig, read_counts, rows, table, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["LANGCHAIN", "PYDANTIC_AI", "parts_of", "run_of"]

# Both say what the providers' own words mean: parts are contained in input and output.
_LANGCHAIN_PATHS: Final[Paths] = {
    "input": (("input_tokens",),),
    "output": (("output_tokens",),),
    "cached": (("input_token_details", "cache_read"),),
    "cache_write": (("input_token_details", "cache_creation"),),
    "reasoning": (("output_token_details", "reasoning"),),
}
_PYDANTIC_AI_PATHS: Final[Paths] = {
    "input": (("input_tokens",),),
    "output": (("output_tokens",),),
    "cached": (("cache_read_tokens",),),
    "cache_write": (("cache_write_tokens",),),
    "reasoning": (("output_reasoning_tokens",), ("details", "reasoning_tokens")),
}
_PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "google": "gcp.gemini",
    "google-cloud": "gcp.vertex_ai",
    "google-gla": "gcp.gemini",
    "google-vertex": "gcp.vertex_ai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "grok": "x_ai",
    "groq": "groq",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "openai": "openai",
    "xai": "x_ai",
}
_WHOLE_MESSAGE: Final = "ai"
_MESSAGE_CHUNK: Final = "AIMessageChunk"


def parts_of(event: Table) -> Sequence[Table]:
    """The calls or chunks that an object of a framework, or of a helper around a stream, stands for.

    Returns:
        The object itself where it stands for nothing else; nothing where it repeats what another one says.
    """
    if isinstance(event.get("raw_responses"), list):  # The result of a run of agents.
        found = (table(item) for item in rows(event["raw_responses"]))
        return [_response_of(item) for item in found if item is not None]
    if event.get("type") == _MESSAGE_CHUNK and "usage_metadata" in event:
        return [{**event, "delta": _text_of(event)}]
    if "snapshot" in event:
        # The helpers of OpenAI and Anthropic put events of their own beside those of the API.
        chunk = table(event.get("chunk"))
        return [] if chunk is None else [chunk]
    if "response_id" in event and "output" in event and "usage" in event:
        return [_response_of(event)]
    return [event]


def run_of(obj: object) -> Table | None:
    """What the result of a run of pydantic-ai says of its usage; None where it is anything else.

    A result keeps its usage where nothing but its own property finds it. Never raises.
    """
    if not str(kind_of(obj).__module__).startswith("pydantic_ai."):
        return None
    result: Any = obj if hasattr(kind_of(obj), "usage") else held_by(obj).get("result")  # The last event's.
    if not (hasattr(kind_of(result), "usage") and hasattr(kind_of(result), "all_messages")):
        return None
    found: dict[str, Any] = {}
    for name in ("usage", "run_id", "response"):
        with suppress(Exception):
            value = getattr(result, name)
            found[name] = value() if ismethod(value) else value  # It was a method in the first release.
    last = held_by(found.get("response"))
    return {
        "kind": "response",
        "parts": [],
        "usage": table_of(found.get("usage")),
        "provider_response_id": found.get("run_id"),
        "model_name": last.get("model_name"),
        "provider_name": last.get("provider_name"),
    }


def _response_of(response: Table) -> Table:
    """A response of the agents SDK, as the API has it."""
    return {"object": "response", "id": response.get("response_id"), "usage": response.get("usage")}


def _text_of(message: Table) -> str:
    content = message.get("content")
    blocks = [dig(block, ("text",)) for block in rows(content)]
    arguments = [dig(call, ("args",)) for call in rows(message.get("tool_call_chunks"))]
    return "".join(piece for piece in (content, *blocks, *arguments) if isinstance(piece, str))


def _settle(counts: Counts) -> Figures:
    return Figures(
        input_tokens=counts.get("input"),
        output_tokens=counts.get("output"),
        cached_input_tokens=counts.get("cached"),
        cache_write_tokens=counts.get("cache_write"),
        reasoning_tokens=counts.get("reasoning"),
    )


def _provider_of(name: object) -> str | None:
    return _PROVIDERS.get(name.partition(":")[0]) if isinstance(name, str) else None


def _see_message(event: Table, strict: bool) -> Sighting | None:
    usage = table(event.get("usage_metadata"))
    kind = event.get("type")
    if usage is None or "input_tokens" not in usage or (strict and not _is_message(event)):
        return None
    counts, refused = read_counts(usage, _LANGCHAIN_PATHS)
    told = table(event.get("response_metadata")) or {}
    return Sighting(
        counts=counts,
        settle=_settle,
        provider=_provider_of(told.get("model_provider")),
        refused=refused,
        # The run's own id, unless the provider's is known: that one is in the response's body, too.
        call_id=text(told.get("id")) or text(event.get("id")),
        model=text(told.get("model_name")) or text(told.get("model")),
        final=kind != _MESSAGE_CHUNK or event.get("chunk_position") == "last",
        # Chunks are made to be added up, figures included.
        adds=kind == _MESSAGE_CHUNK,
    )


def _is_message(event: Table) -> bool:
    return event.get("type") in (_WHOLE_MESSAGE, _MESSAGE_CHUNK) and "response_metadata" in event


def _see_response(event: Table, strict: bool) -> Sighting | None:
    usage = table(event.get("usage"))
    if usage is None or (strict and not _is_response(event)):
        return None
    counts, refused = read_counts(usage, _PYDANTIC_AI_PATHS)
    if not counts and not refused:
        return None
    return Sighting(
        counts=counts,
        settle=_settle,
        provider=_provider_of(event.get("provider_name")),
        refused=refused,
        call_id=text(event.get("provider_response_id")),
        model=text(event.get("model_name")),
        final=True,
    )


def _is_response(event: Table) -> bool:
    return event.get("kind") == "response" and isinstance(event.get("parts"), list)


LANGCHAIN: Final = Api(name="langchain", provider=None, see=_see_message, knows=_is_message)
PYDANTIC_AI: Final = Api(name="pydantic-ai", provider=None, see=_see_response, knows=_is_response)
