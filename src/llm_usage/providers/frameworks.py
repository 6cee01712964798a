"""Usage that frameworks report: LangChain, pydantic-ai, LiteLLM, OpenAI's agents SDK; runs call by call.

- https://docs.langchain.com/oss/python/langchain/messages
- https://ai.pydantic.dev/api/usage/, https://ai.pydantic.dev/api/run/
- https://openai.github.io/openai-agents-python/usage/, https://openai.github.io/openai-agents-python/results/
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Final

from llm_usage.call_usage import figure
from llm_usage.json_values import dig, paths, read_counts, rows, short_id, table, text
from llm_usage.plain_values import instance_members, kind_of, table_of
from llm_usage.providers.gemini import grounding_searches
from llm_usage.providers.openai import OPENAI, count_tool_calls
from llm_usage.providers.reader_interface import ProviderApi, read_cost
from llm_usage.reported_calls import EventUsage
from llm_usage.units import UNIT_OF, UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from llm_usage.json_values import Counts, Table

# Both say what the providers' own words mean: parts are contained in input and output. ChatOpenAI writes the
# service tier before the names of parts, where it is not the default.
_TIERS: Final = ("priority", "flex")


def _details(direction: str, name: str) -> str:
    place = f"{direction}_token_details"
    return " ".join(f"{place}.{prefix}{name}" for prefix in ("", *(f"{tier}_" for tier in _TIERS)))


_LANGCHAIN_PATHS: Final = paths(
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
_PYDANTIC_AI_PATHS: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="cache_read_tokens",
    cache_write_tokens="cache_write_tokens",
    reasoning_tokens="output_reasoning_tokens details.reasoning_tokens",
)
_UNIT_PATHS: Final = paths(
    **{unit: unit for unit in UNITS - {*_PYDANTIC_AI_PATHS, *UNIT_OF.values()}},
)
"""Further counters of pydantic-ai: attributes that have the names of the price table's units."""
# OpenTelemetry's names of providers, otherwise the price table's, each with what the frameworks call it.
_ALIASES: Final = {
    "anthropic": "anthropic",
    "aws.bedrock": "bedrock bedrock_converse bedrock-mantle amazon_bedrock aws",
    "azure.ai.openai": "azure azure_openai azure-openai azure_ai",
    "baseten": "baseten",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "cohere": "cohere cohere_chat",
    "databricks": "databricks",
    "deepseek": "deepseek",
    "fireworks": "fireworks fireworks_ai",
    "gcp.gemini": "google google-gla google_genai google-genai gemini",
    "gcp.vertex_ai": "google-cloud google-vertex google_vertexai vertex_ai",
    "github-copilot": "github-copilot github_copilot",
    "groq": "groq",
    "meta": "meta meta_llama",
    "minimax": "minimax",
    "mistral_ai": "mistral mistralai codestral",
    "moonshot_ai": "moonshot moonshotai",
    "novita": "novita",
    "ollama": "ollama ollama_chat",
    "openai": "openai openai-chat openai-responses",
    "openai-decisions": "openai-decisions",
    "openrouter": "openrouter",
    "ovhcloud": "ovhcloud",
    "perplexity": "perplexity",
    "together": "together together_ai",
    "voyageai": "voyage voyageai",
    "x_ai": "grok xai x-ai x_ai",
    "zai": "zai",
}
_PROVIDERS: Final = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
_GATEWAYS: Final = ("openrouter",)
_CONTEXT: Final = ("service_tier", "speed", "inference_geo")
_SEARCH_PATHS: Final = paths(web_searches="server_tool_use.web_search_requests")
_COMPARED: Final = ("input_tokens", "output_tokens")
_MODEL_END: Final = "on_chat_model_end"
_MODEL_EVENTS: Final = {"on_chat_model_stream": "chunk", _MODEL_END: "output"}
"""Events of `astream_events` that models send, each with the member that has the message."""
_HANDLER_MEMBERS: Final = 8
_SPOKEN: Final = "realtime.response"
_ASKED: Final = "provider asked by LiteLLM"
_WHOLE_MESSAGE: Final = "ai"
_WHOLE_RUN: Final = "ai of a run"
_MESSAGE_CHUNK: Final = "AIMessageChunk"
_SERVER_CALL: Final = "server_tool_call"
_SEARCHED: Final = "web_search_tool_result"
_OPENAI_CALLED: Final = ("openai", "azure.ai.openai")


def parts_of(event: Table) -> Sequence[Table]:
    """The calls or chunks that an object of a framework, or of a helper around a stream, stands for.

    Returns:
        The object itself where it stands for nothing else; nothing where it repeats what another one says.
    """
    for read in (_langchain_parts, _agents_parts):
        found = read(event)
        if found is not None:
            return found
    if event.get("object") == _SPOKEN:
        return [{"type": "response.done", "response": event}]
    if "snapshot" in event:
        # The helpers of OpenAI and Anthropic put events of their own beside those of the API.
        chunk = table(event.get("chunk"))
        return [] if chunk is None else [chunk]
    return [event]


def is_model_event(event: Table) -> bool:
    """Whether it is an event that a model of LangChain sends in a run."""
    named = event.get("event")
    return isinstance(named, str) and named in _MODEL_EVENTS


def _langchain_parts(event: Table) -> Sequence[Table] | None:
    """Messages in the events, results and counters of LangChain; None: it is none of these."""
    if is_model_event(event):
        named = event["event"]
        found = table(dig(event, ("data", _MODEL_EVENTS[named])))
        if found is None:
            return []
        found = {**found, "run_metadata": event.get("metadata")}
        # At its end the chunks come once more as one, under the id that they have had.
        return [{**found, "type": _WHOLE_RUN}] if named == _MODEL_END else parts_of(found)
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
    return None if found is None else replace(found, provider=_provider_of(event[_ASKED]))


def _is_routed(event: Table) -> bool:
    return _ASKED in event and OPENAI.recognises(event)


def _agents_parts(event: Table) -> Sequence[Table] | None:
    """The calls of a response or a counter of OpenAI's agents SDK; None: it is none of these."""
    if "response_id" in event and "output" in event and "usage" in event:
        return [_agents_response(event)]
    entries = [entry for item in rows(event.get("request_usage_entries")) if (entry := table(item))]
    same = all(sum(entry.get(name) or 0 for entry in entries) == event.get(name) for name in _COMPARED)
    return [{"object": "response", "usage": entry} for entry in entries] if entries and same else None


def _agents_response(response: Table) -> Table:
    """A response of the agents SDK, as the API has it."""
    named = {"id": response.get("response_id"), "model": response.get("model")}
    return {"object": "response", "usage": response.get("usage"), "output": response["output"], **named}


def _text_of(message: Table) -> str:
    content = message.get("content")
    blocks = [dig(block, ("text",)) for block in rows(content)]
    arguments = [dig(call, ("args",)) for call in rows(message.get("tool_call_chunks"))]
    return "".join(piece for piece in (content, *blocks, *arguments) if isinstance(piece, str))


def _provider_of(name: object) -> str | None:
    return _PROVIDERS.get(name.partition(":")[0].lower()) if isinstance(name, str) else None


def _first_text(*places: tuple[Table, str]) -> str | None:
    return next((found for holder, name in places if (found := text(holder.get(name)))), None)


def _settle_message(counts: Counts) -> Counts:
    # Where writes are known by how long they are kept, ChatAnthropic has 0 for all of them.
    kept = sum(counts.get(name, 0) for name in ("cache_write_5m_tokens", "cache_write_1h_tokens"))
    written = counts.get("cache_write_tokens")
    return counts if kept <= (written or 0) else {**counts, "cache_write_tokens": kept}


def _message_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage_metadata"))
    is_chunk = event.get("type") == _MESSAGE_CHUNK
    if usage is None:
        # The model may stand in a chunk without figures: in the first one, or in that which ends the text.
        usage = {"input_tokens": None} if is_chunk and _is_message(event) else {}
    if "input_tokens" not in usage or (strict and not _is_message(event)):
        return None
    counts, refused = read_counts(usage, _LANGCHAIN_PATHS)
    response = table(event.get("response_metadata")) or {}
    more = table(event.get("additional_kwargs")) or {}
    metadata = table(event.get("run_metadata")) or {}
    raw = table(response.get("usage")) or {}
    names = [(holder, name) for holder in (response, more) for name in ("model_name", "model", "model_id")]
    model = _first_text(*names, (metadata, "ls_model_name"))
    provider = _provider_of(response.get("model_provider")) or _provider_of(metadata.get("ls_provider"))
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
        cost_micros=_reported_cost(provider, response.get("cost")),
        sums=event.get("is_sum") is True,
    )


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


def _reported_cost(provider: str | None, dollars: object) -> Fraction | None:
    """The amount that a gateway says it charges, in micro-units; None: it is no gateway, or says none."""
    if provider not in _GATEWAYS:
        return None
    if isinstance(dollars, str):
        # As a float: an exact fraction with a large exponent takes minutes.
        with suppress(ValueError, OverflowError):
            dollars = float(dollars)
    return read_cost({"cost": dollars})[0]


def _is_message(event: Table) -> bool:
    return event.get("type") in (_WHOLE_MESSAGE, _MESSAGE_CHUNK, _WHOLE_RUN) and "response_metadata" in event


def _response_usage(event: Table, strict: bool) -> EventUsage | None:
    usage = table(event.get("usage"))
    if usage is None or (strict and not _is_response(event)):
        return None
    counts, refused = read_counts(usage, _PYDANTIC_AI_PATHS)
    if not counts and not refused:
        return None
    further, _ = read_counts(usage, _UNIT_PATHS)
    details = table(event.get("provider_details")) or {}
    provider, tier = _provider_of(event.get("provider_name")), text(details.get("service_tier"))
    return EventUsage(
        counts={**counts, **{unit: count for unit, count in further.items() if count}},
        provider=provider,
        refused=refused,
        call_id=short_id(event.get("provider_response_id")),
        model=text(event.get("model_name")),
        # Each response without an id is a call of its own.
        opens=event.get("provider_response_id") is None,
        final=True,
        context={} if tier is None else {"service_tier": tier},
        cost_micros=_reported_cost(provider, details.get("cost")),
        sums=event.get("is_sum") is True or (figure(usage.get("requests")) or 0) > 1,
    )


def _is_response(event: Table) -> bool:
    return event.get("kind") == "response" and isinstance(event.get("parts"), list)


LITELLM: Final = ProviderApi(name="litellm", provider=None, usage_in=_routed_usage, recognises=_is_routed)
LANGCHAIN: Final = ProviderApi(
    name="langchain", provider=None, usage_in=_message_usage, recognises=_is_message
)
PYDANTIC_AI: Final = ProviderApi(
    name="pydantic-ai", provider=None, usage_in=_response_usage, recognises=_is_response
)


_LAST_AGENTS: Final = ("_last_agent", "last_agent", "current_agent")
_ROUTED_BY: Final = ("litellm/", "any-llm/")
"""Prefixes by which the agents SDK chooses its client, not part of a model's name."""


def responses_of_run(obj: object) -> Sequence[Table] | None:
    """Model responses of the result of a run; None: the object is anything else. Never raises.

    They are tables as :func:`llm_usage.plain_values.table_of` makes them of one response.
    """
    module = str(kind_of(obj).__module__)
    with suppress(Exception):  # Foreign code.
        if module.startswith("pydantic_ai."):
            return _pydantic_ai_responses(obj)
        if isinstance(_members_of(obj).get("raw_responses"), list):
            return _agents_responses(_members_of(obj))
    return None


def _pydantic_ai_responses(obj: object) -> Sequence[Table] | None:
    """A result keeps its usage and messages where only its own members find them."""
    result: Any = (
        obj if hasattr(kind_of(obj), "usage") else instance_members(obj).get("result")
    )  # The last event's.
    if not (hasattr(kind_of(result), "usage") and hasattr(kind_of(result), "all_messages")):
        return None
    found: dict[str, Any] = {}
    for name in ("usage", "run_id", "response", "new_messages"):
        with suppress(Exception):
            value = getattr(result, name)
            found[name] = value() if ismethod(value) else value  # `usage` was a method in the first release.
    total = table_of(found.get("usage")) or {}
    messages = [instance_members(message) for message in rows(found.get("new_messages"))]
    calls = [_run_response(message) for message in messages if message.get("kind") == "response"]
    run_id = text(found.get("run_id"))
    for nth, call in enumerate(calls):
        # Without an id of the provider the run tells its calls from those of others.
        if run_id is not None and not short_id(call["provider_response_id"]):
            call["provider_response_id"] = f"{run_id}/{nth}"
    if calls and all(
        sum(_figure(call["usage"], name) for call in calls) == _figure(total, name) for name in _COMPARED
    ):
        return calls
    # Other runs have counted on the same usage, or messages were dropped: only the sum is known.
    last = _run_response(instance_members(found.get("response")))
    return [{**last, "usage": total, "provider_response_id": run_id, "is_sum": True}]


def _run_response(message: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model_name", "provider_name", "provider_response_id")
    return {
        "kind": "response",
        "parts": [],
        "usage": table_of(message.get("usage")) or {},
        "provider_details": table_of(message.get("provider_details")) or {},
        **{name: message.get(name) for name in names},
    }


def _figure(usage: Table, name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


def _agents_responses(result: Mapping[str, Any]) -> Sequence[Table]:
    """Responses of a run of OpenAI's agents, each with the model of its agent: they name none themselves."""
    last = _model_of(next((result[name] for name in _LAST_AGENTS if result.get(name) is not None), None))
    models = {
        id(_members_of(item).get("raw_item")): _model_of(_members_of(item).get("agent"))
        for item in rows(result.get("new_items"))
    }
    found: list[Table] = []
    for response in rows(result["raw_responses"]):
        event = table_of(response)
        if event is not None:
            output = rows(_members_of(response).get("output"))
            named = (models[id(item)] for item in output if id(item) in models)
            found.append({**event, "model": next(named, last)})
    return found


def _model_of(agent: object) -> str | None:
    """The model of an agent, as a name or as a client that holds one; None: the SDK's default."""
    model = _members_of(agent).get("model")
    name = text(model) or text(_members_of(model).get("model"))
    return None if name is None else name.removeprefix(_ROUTED_BY[0]).removeprefix(_ROUTED_BY[1])


def _members_of(value: object) -> Mapping[str, Any]:
    return table(value) or instance_members(value)
