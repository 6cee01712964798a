"""LangChain: messages, chunks, results and counters; parts are contained in input and output.

https://docs.langchain.com/oss/python/langchain/messages
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.json_values import dig, paths, read_counts, rows, short_id, table, text
from llm_usage.providers.gemini import grounding_searches
from llm_usage.providers.openai_tools import count_tool_calls
from llm_usage.providers.provider_names import provider_of
from llm_usage.providers.reader_interface import ProviderApi, UsageShape, read_gateway_cost
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_usage.json_values import Counts, Table

# ChatOpenAI writes the service tier before the names of parts, where it is not the default.
_TIERS: Final = ("priority", "flex")


def _details(direction: str, name: str) -> str:
    place = f"{direction}_token_details"
    return " ".join(f"{place}.{prefix}{name}" for prefix in ("", *(f"{tier}_" for tier in _TIERS)))


_PATHS: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens=_details("input", "cache_read"),
    cache_write_tokens=_details("input", "cache_creation"),
    cache_write_5m_tokens="input_token_details.ephemeral_5m_input_tokens",
    cache_write_1h_tokens="input_token_details.ephemeral_1h_input_tokens",
    reasoning_tokens=_details("output", "reasoning"),
    **{
        f"{direction}_{modality}_tokens": _details(direction, modality)
        for direction in ("input", "output")
        for modality in ("text", "audio", "image", "video")
    },
)
_SEARCH_PATHS: Final = paths(web_searches="server_tool_use.web_search_requests")
_CONTEXT: Final = ("service_tier", "speed", "inference_geo")
_MODEL_END: Final = "on_chat_model_end"
_MODEL_EVENTS: Final = {"on_chat_model_stream": "chunk", _MODEL_END: "output"}
"""Events of `astream_events` that models send, each with the member that has the message."""
_HANDLER_MEMBERS: Final = 8
_WHOLE_MESSAGE: Final = "ai"
_WHOLE_RUN: Final = "ai of a run"
_MESSAGE_CHUNK: Final = "AIMessageChunk"
_SERVER_CALL: Final = "server_tool_call"
_SEARCHED: Final = "web_search_tool_result"
_OPENAI_CALLED: Final = ("openai", "azure.ai.openai")


def is_model_event(event: Table) -> bool:
    """Whether it is an event that a model of LangChain sends in a run."""
    named = event.get("event")
    return isinstance(named, str) and named in _MODEL_EVENTS


def langchain_parts(event: Table) -> Sequence[Table] | None:
    """Messages in the events, results and counters of LangChain; None: it is none of these."""
    if is_model_event(event):
        named = event["event"]
        found = table(dig(event, ("data", _MODEL_EVENTS[named])))
        if found is None:
            return []
        found = {**found, "run_metadata": event.get("metadata")}
        # At its end the chunks come once more as one, under the id that they have had.
        if named == _MODEL_END:
            return [{**found, "type": _WHOLE_RUN}]
        inner = langchain_parts(found)
        return [found] if inner is None else inner
    if event.get("type") == _MESSAGE_CHUNK and "usage_metadata" in event:
        return [{**event, "delta": _text_of(event)}]
    if isinstance(event.get("generations"), list):
        ranks = (rows(rank) or [rank] for rank in rows(event["generations"]))
        messages = (table(dig(one, ("message",))) for rank in ranks for one in rank)
        return [message for message in messages if message is not None]
    by_model = table(event.get("usage_metadata")) if len(event) <= _HANDLER_MEMBERS else None
    for counters in (by_model, event):
        if counters and all("usage" not in name and _is_counter(usage) for name, usage in counters.items()):
            return [
                {
                    "type": _WHOLE_MESSAGE,
                    "usage_metadata": usage,
                    "response_metadata": {"model_name": name},
                    "is_sum": True,
                }
                for name, usage in counters.items()
            ]
    return None


def _is_counter(usage: object) -> bool:
    """Whether it has the figures that UsageMetadataCallbackHandler counts for a model."""
    return {"input_tokens", "output_tokens", "total_tokens"} <= (table(usage) or {}).keys()


def _text_of(message: Table) -> str:
    content = message.get("content")
    blocks = [dig(block, ("text",)) for block in rows(content)]
    arguments = [dig(call, ("args",)) for call in rows(message.get("tool_call_chunks"))]
    return "".join(piece for piece in (content, *blocks, *arguments) if isinstance(piece, str))


def _message_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage_metadata"))
    is_chunk = event.get("type") == _MESSAGE_CHUNK
    if usage is None:
        # The model may stand in a chunk without figures: in the first one, or in that which ends the text.
        usage = {"input_tokens": None} if is_chunk and _is_message(event) else {}
    if "input_tokens" not in usage or (strict and not _is_message(event)):
        return None
    counts, refused = read_counts(usage, _PATHS)
    response = table(event.get("response_metadata")) or {}
    more = table(event.get("additional_kwargs")) or {}
    metadata = table(event.get("run_metadata")) or {}
    raw = table(response.get("usage")) or {}
    names = [(holder, name) for holder in (response, more) for name in ("model_name", "model", "model_id")]
    model = _first_text(*names, (metadata, "ls_model_name"))
    provider = provider_of(response.get("model_provider")) or provider_of(metadata.get("ls_provider"))
    tools = _tool_calls(event, response, model, provider)
    if not (counts or tools or refused or model or provider):
        return None
    # The run's own id, unless the provider's is known: that one is in the response's body, too. All chunks of
    # a message have the id of the message.
    ids = (short_id(response.get("id")), short_id(event.get("id")))
    context = {name: _first_text((response, name), (raw, name)) for name in _CONTEXT}
    context["service_tier"] = context["service_tier"] or _tier_of(usage)
    return EventUsage(
        counts={**tools, **counts, **(read_counts(raw, _SEARCH_PATHS)[0] if counts else {})},
        settle=_settle_message,
        provider=provider,
        refused=refused,
        call_id=(ids[0] or ids[1]) if event.get("type") == _WHOLE_MESSAGE else (ids[1] or ids[0]),
        model=model,
        final=bool(counts) and (not is_chunk or event.get("chunk_position") == "last"),
        # Chunks are made to be added up, figures included.
        adds=is_chunk,
        context={name: value for name, value in context.items() if value is not None},
        cost_micros=read_gateway_cost(provider, response.get("cost")),
        sums=event.get("is_sum") is True,
    )


def _is_message(event: Table) -> bool:
    return event.get("type") in (_WHOLE_MESSAGE, _MESSAGE_CHUNK, _WHOLE_RUN) and "response_metadata" in event


def _settle_message(counts: Counts) -> Counts:
    # Where writes are known by how long they are kept, ChatAnthropic has 0 for all of them.
    kept = sum(counts.get(name, 0) for name in ("cache_write_5m_tokens", "cache_write_1h_tokens"))
    written = counts.get("cache_write_tokens")
    return counts if kept <= (written or 0) else {**counts, "cache_write_tokens": kept}


def _first_text(*places: tuple[Table, str]) -> str | None:
    return next((found for holder, name in places if (found := text(holder.get(name)))), None)


def _tier_of(usage: Table) -> str | None:
    details = table(usage.get("input_token_details")) or {}
    return next((tier for tier in _TIERS if tier in details), None)


def _tool_calls(message: Table, response: Table, model: str | None, provider: str | None) -> dict[str, int]:
    """Calls of hosted tools in a message: in its content, and of Google's in what grounds it."""
    more = table(message.get("additional_kwargs")) or {}
    items = [item for array in (message.get("content"), more.get("tool_outputs")) for item in rows(array)]
    if provider in _OPENAI_CALLED:
        items = [_as_called(item) for item in items]
    found = count_tool_calls({"output": items})
    # Chunks of Anthropic's have no other figure of them; a search that failed is not billed.
    results = [dig(item, ("content",)) for item in items if dig(item, ("type",)) == _SEARCHED]
    if searched := sum(isinstance(result, list) for result in results):
        found["web_searches"] = searched
    # A stream may repeat what grounds it: it is complete in the chunk that ends.
    if message.get("type") != _MESSAGE_CHUNK or response.get("finish_reason") is not None:
        found |= grounding_searches([response.get("grounding_metadata")], model)
    return found


def _as_called(block: object) -> object:
    """A block of a message's content, as OpenAI's API has it if it is a call of a hosted tool."""
    if dig(block, ("type",)) != _SERVER_CALL:
        return block
    return {"type": f"{dig(block, ('name',))}_call", "action": dig(block, ("args",))}


LANGCHAIN: Final = ProviderApi(
    name="langchain",
    provider=None,
    usage_in=_message_usage,
    recognises=_is_message,
    shapes=(
        UsageShape("messages, chunks and counters", "usage_metadata", _PATHS),
        UsageShape("searches of Anthropic", "response_metadata.usage", _SEARCH_PATHS),
    ),
)
