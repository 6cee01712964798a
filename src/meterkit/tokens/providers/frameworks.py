"""Usage as frameworks around the providers' SDKs report it: LangChain, pydantic-ai, the agents SDK of OpenAI.

https://docs.langchain.com/oss/python/langchain/messages
https://ai.pydantic.dev/api/usage/
https://openai.github.io/openai-agents-python/usage/
"""

from __future__ import annotations

from contextlib import suppress
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.json_values import dig, paths, read_counts, rows, table, text
from meterkit.tokens.plain_values import held_by, kind_of, table_of
from meterkit.tokens.providers.api import Api

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.tokens.json_values import Table

# Both say what the providers' own words mean: parts are contained in input and output.
_LANGCHAIN_PATHS: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="input_token_details.cache_read",
    cache_write_tokens="input_token_details.cache_creation",
    reasoning_tokens="output_token_details.reasoning",
)
_PYDANTIC_AI_PATHS: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="cache_read_tokens",
    cache_write_tokens="cache_write_tokens",
    reasoning_tokens="output_reasoning_tokens details.reasoning_tokens",
)
# OpenTelemetry's names of providers, each with what the frameworks call it.
_ALIASES: Final = {
    "anthropic": "anthropic",
    "aws.bedrock": "bedrock bedrock_converse",
    "azure.ai.openai": "azure azure_openai",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "gcp.gemini": "google google-gla google_genai",
    "gcp.vertex_ai": "google-cloud google-vertex google_vertexai",
    "groq": "groq",
    "mistral_ai": "mistral mistralai",
    "openai": "openai",
    "x_ai": "grok xai",
}
_PROVIDERS: Final = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_WHOLE_MESSAGE: Final = "ai"
_MESSAGE_CHUNK: Final = "AIMessageChunk"


def parts_of(event: Table) -> Sequence[Table]:
    """The calls or chunks that an object of a framework, or of a helper around a stream, stands for.

    Returns:
        The object itself where it stands for nothing else; nothing where it repeats what another one says.
    """
    if isinstance(event.get("raw_responses"), list):  # The result of a run of agents.
        found = (table(item) for item in rows(event["raw_responses"]))
        model = _model_of_agents(event)
        return [{**_response_of(item), "model": model} for item in found if item is not None]
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


def _model_of_agents(run: Table) -> str | None:
    """The model of a run of agents; None: it is not known, or they have several."""
    agents = [run.get("last_agent"), run.get("current_agent")]
    agents += [dig(item, ("agent",)) for item in rows(run.get("new_items"))]
    models = [dig(agent, ("model",)) for agent in agents]
    names = {text(model) or text(dig(model, ("model",))) for model in models if model is not None}
    return names.pop() if len(names) == 1 else None


def _response_of(response: Table) -> Table:
    """A response of the agents SDK, as the API has it."""
    return {"object": "response", "id": response.get("response_id"), "usage": response.get("usage")}


def _text_of(message: Table) -> str:
    content = message.get("content")
    blocks = [dig(block, ("text",)) for block in rows(content)]
    arguments = [dig(call, ("args",)) for call in rows(message.get("tool_call_chunks"))]
    return "".join(piece for piece in (content, *blocks, *arguments) if isinstance(piece, str))


def _provider_of(name: object) -> str | None:
    return _PROVIDERS.get(name.partition(":")[0]) if isinstance(name, str) else None


def _message_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage_metadata"))
    kind = event.get("type")
    if usage is None or "input_tokens" not in usage or (strict and not _is_message(event)):
        return None
    counts, refused = read_counts(usage, _LANGCHAIN_PATHS)
    told = table(event.get("response_metadata")) or {}
    return EventUsage(
        counts=counts,
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


def _response_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage"))
    if usage is None or (strict and not _is_response(event)):
        return None
    counts, refused = read_counts(usage, _PYDANTIC_AI_PATHS)
    if not counts and not refused:
        return None
    return EventUsage(
        counts=counts,
        provider=_provider_of(event.get("provider_name")),
        refused=refused,
        call_id=text(event.get("provider_response_id")),
        model=text(event.get("model_name")),
        final=True,
    )


def _is_response(event: Table) -> bool:
    return event.get("kind") == "response" and isinstance(event.get("parts"), list)


LANGCHAIN: Final = Api(name="langchain", provider=None, usage_in=_message_usage, recognises=_is_message)
PYDANTIC_AI: Final = Api(name="pydantic-ai", provider=None, usage_in=_response_usage, recognises=_is_response)
