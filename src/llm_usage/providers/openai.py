"""OpenAI's APIs and compatible servers: events and responses, and where each has its usage.

- https://platform.openai.com/docs/api-reference, https://github.com/openai/openai-python (`openai.types`)
- https://docs.mistral.ai/api, https://docs.perplexity.ai/api-reference, https://docs.x.ai/docs/api-reference
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from llm_usage.batch_lines import is_async_completion, outliving_state
from llm_usage.json_values import dig, rows, short_id, table, text
from llm_usage.providers.gemini import charged_searches
from llm_usage.providers.openai_figures import SHAPES, read_duration, read_usage, settle
from llm_usage.providers.openai_tools import TOOL_SHAPES, count_tool_calls, read_other_calls
from llm_usage.providers.reader_interface import OPENROUTER, ProviderApi, is_openrouter, read_cost
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from llm_usage.json_values import Counts, Table

_OPENAI: Final = "openai"
_TICKS: Final = "cost_in_usd_ticks"
_IMAGE_EVENTS: Final = ("image_generation.completed", "image_edit.completed")
_MEDIA_EVENTS: Final = ("transcript.text.done", "transcription.done", "speech.audio.done", *_IMAGE_EVENTS)
_COMPACTION: Final = "response.compaction"
_WHOLE: Final = ("response", _COMPACTION, "batch", "thread.run", "conversation.response")
"""Objects that have the usage of a call, or of several."""
_SUMS: Final = ("batch", "thread.run")
"""Objects that have the sum of several calls."""
_CONVERSED: Final = "conversation.response.done"  # Mistral's; its figures stand in the event.
_STREAMED: Final = (
    "response.",
    "transcript.text.",
    "transcription.",
    "speech.audio.",
    "image_generation.",
    "image_edit.",
)
"""Beginnings of the types of events."""
_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
"""The Realtime API's event of another model's call, which transcribes what the user has said."""
SESSION_LENGTHS: Final = ("session.usage.updated", "session.closed")
"""Events of the Live API that say how long a session is so far."""
LIVE_SESSION: Final = "session"
"""Id of a live session in events that name none."""
_OTHER_EVENTS: Final = (*_MEDIA_EVENTS, *SESSION_LENGTHS, _CONVERSED, _TRANSCRIBED)
_NESTED: Final = "response.event"
"""The Live API's event that has one of the Responses API in it."""
_DECISIONS: Final = frozenset({"predicate", "choice", "score", "refusal"})
_VECTORS: Final = ("embedding", "embeddings", "prediction")
"""Members of the items in a list of vectors: OpenAI's, and Jina's several vectors of a text and classes."""
_MAY_HAVE_OTHERS: Final = frozenset({"output", "svg_usage", "tool_usage"})
"""Members of a response that may hold calls of other models."""
_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard"})


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    nested = table(event.get("event")) if event.get("type") == _NESTED else None
    if nested is not None:
        event = nested
    if _is_part(event):
        return None
    state = outliving_state(event)
    holder = None if state == "pending" else _find_response(event)
    if holder is None:
        if strict or state == "pending":
            return None
        holder = event
    usage: Table = _usage_of(holder) or {}
    cost, has_refused_cost = read_cost(usage)
    found = _counts_in(event, usage)
    if found is None and (cost is None or not (_is_images(event) or _is_ranking(event))):
        return None
    counts, refused = found or ({}, False)  # Of images and rankings some say only what they cost.
    if holder.get("object") != _COMPACTION:
        counts = {**count_tool_calls(holder), **counts}
    if "google_searches" in counts:
        searches = charged_searches(counts["google_searches"], text(holder.get("model")))
        counts = {"web_searches": searches, **counts}
    provider = _find_provider(holder, usage)
    choices = rows(holder.get("choices"))
    finished = any(dig(choice, ("finish_reason",)) is not None for choice in choices)
    kind = event.get("type")
    is_transcribed = kind == _TRANSCRIBED
    session = table(event.get("session")) if kind in SESSION_LENGTHS else None
    named = holder if session is None else session
    if state is not None and is_async_completion(event):
        named = event
    return EventUsage(
        counts=counts,
        settle=settle,
        provider=provider,
        refused=refused or has_refused_cost,
        call_id=short_id(named.get("item_id" if is_transcribed else "id"))
        or (short_id(named.get("request_id")) if _has_output(named) else None)
        or (LIVE_SESSION if kind in SESSION_LENGTHS else None),
        model=text(named.get("model")) or _model_of_outputs(named),
        opens=is_transcribed or _is_complete_answer(event, holder),
        final=(finished or not choices) and kind != SESSION_LENGTHS[0],
        alone=not choices,
        outlives=state is not None,
        sums=holder.get("object") in _SUMS,
        context=_context(holder, usage),
        cost_micros=cost,
        others=_calls_of_others(holder, provider, cost),
    )


def _is_part(event: Table) -> bool:
    """Whether it is a step of a run: the run's own usage has it."""
    named = event.get("object")
    return isinstance(named, str) and named.startswith("thread.run.step")


def _find_response(event: Table) -> Table | None:
    """The part of an event that is a response of the API, if the event is one."""
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
        return table(event.get("response"))
    if (
        isinstance(event.get("choices"), list)
        or event.get("object") in _WHOLE
        or kind in _OTHER_EVENTS
        or _is_embeddings(event)
        or _is_ranking(event)
        or _is_transcription(event)
        or _is_images(event)
        or _is_decision(event)
        or _has_output(event)
    ):
        return event
    return _find_nested(event)


def _find_nested(event: Table) -> Table | None:
    """The answer of a model that Cloudflare has inside an answer of its own, or Perplexity inside a job."""
    if is_async_completion(event):
        return table(event.get("response"))
    result = table(event.get("result")) if isinstance(event.get("success"), bool) else None
    return None if dig(result, ("usage", "prompt_tokens")) is None else result


def _usage_of(holder: Table) -> Table | None:
    """The usage object, where it is or where some servers put it."""
    found = table(holder.get("usage"))
    if found is None:
        found = table(dig(holder, ("x_groq", "usage")))
    if found is None:
        choices = rows(holder.get("choices"))
        found = table(dig(choices[0], ("usage",))) if choices else None
    return found


def _counts_in(event: Table, usage: Table) -> tuple[Counts, bool] | None:
    if event.get("type") in SESSION_LENGTHS:
        return read_duration(usage, ("audio_seconds",))
    has_only_total = _is_embeddings(event) or _is_ranking(event)
    return read_usage(usage, has_only_total=has_only_total, makes_images=_is_images(event))


def _find_provider(holder: Table, usage: Table) -> str:
    """The provider, where an answer shows that it is not OpenAI."""
    if "cost" in usage and is_openrouter(holder, usage):
        return OPENROUTER
    if "x_groq" in holder:
        return "groq"
    if "timings" in holder:
        return "llama.cpp"
    if holder.get("system_fingerprint") == "fp_ollama":
        return "ollama"
    return "deepseek" if "prompt_cache_hit_tokens" in usage else _OPENAI


def _context(holder: Table, usage: Table) -> dict[str, str]:
    """As what a call was processed, where that may have a price of its own."""
    found: dict[str, str] = {}
    tier = text(holder.get("service_tier")) or text(usage.get("service_tier"))
    if tier is not None and tier not in _STANDARD_TIERS:
        found["service_tier"] = tier
    if holder.get("object") == "batch":
        found["processing"] = "batch"
    return found


def _model_of_outputs(answer: Table) -> str | None:
    """The model that the outputs of an answer of Mistral's agents name, if it is one."""
    names = {name for output in rows(answer.get("outputs")) if (name := text(dig(output, ("model",))))}
    return names.pop() if len(names) == 1 else None


def _calls_of_others(holder: Table, provider: str, cost: Fraction | None) -> tuple[EventUsage, ...]:
    """The calls of other models inside an answer; an amount that the provider reports is for all of them."""
    if _MAY_HAVE_OTHERS.isdisjoint(holder):
        return ()
    found = tuple(read_other_calls(holder, provider))
    return found if cost is None else tuple(replace(other, cost_micros=Fraction(0)) for other in found)


def _is_complete_answer(event: Table, holder: Table) -> bool:
    """Whether it is all of an answer, and no piece of a stream."""
    kind, choices = event.get("type"), rows(holder.get("choices"))
    if choices:
        return not str(holder.get("object")).endswith(".chunk") and all(map(_is_answer, choices))
    if "choices" in holder or (isinstance(kind, str) and kind not in _MEDIA_EVENTS):
        return False
    return _find_response(event) is not None


def _is_answer(choice: object) -> bool:
    return table(dig(choice, ("message",))) is not None and dig(choice, ("delta",)) is None


def _is_embeddings(event: Table) -> bool:
    """Whether it is a list of vectors, or of classes by vectors; those of a document may be together."""
    data = rows(event.get("data"))
    if event.get("object") != "list" or not data:
        return False
    inner = rows(dig(data[0], ("data",)))
    found = (dig(item, (name,)) for item in (data[0], *inner[:1]) for name in _VECTORS)
    return any(value is not None for value in found)


def _is_ranking(event: Table) -> bool:
    found = rows(event.get("results")) or rows(event.get("data"))
    return bool(found) and dig(found[0], ("relevance_score",)) is not None


def _is_transcription(event: Table) -> bool:
    """Whether it is a transcription; only its usage tells it from other JSON."""
    usage = table(event.get("usage"))
    if usage is None or not isinstance(event.get("text"), str):
        return False
    return usage.get("type") in ("tokens", "duration") or "seconds" in usage


def _is_images(event: Table) -> bool:
    """Whether images have come, in a list or one in an event; only its usage tells a list from other JSON."""
    if event.get("type") in _IMAGE_EVENTS:
        return True
    usage = table(event.get("usage"))
    if usage is None or not isinstance(event.get("data"), list):
        return False
    return "created" in event or _TICKS in usage  # Of xAI's there is nothing else.


def _is_decision(event: Table) -> bool:
    answers = rows(event.get("answers"))
    kind = dig(answers[0], ("type",)) if answers else None
    return isinstance(kind, str) and kind in _DECISIONS


def _has_output(event: Table) -> bool:
    """Whether it is an answer of Alibaba's DashScope, or an event of its stream, whose figures are sums."""
    output = table(event.get("output"))
    if output is None or not isinstance(event.get("request_id"), str):
        return False
    return "finish_reason" in output or isinstance(output.get("choices"), list)


def _recognises(event: Table) -> bool:
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith(_STREAMED):
        return True
    named = event.get("object")
    if isinstance(named, str):
        known = named.startswith(("chat.completion", "text_completion", "thread.run")) or named in _WHOLE
        return known or _is_embeddings(event) or _is_ranking(event)
    choices = rows(event.get("choices"))
    first = table(choices[0]) if choices else None
    if kind in _OTHER_EVENTS or _is_ranking(event) or is_async_completion(event):
        return True
    return first is not None and _is_choice(first)


def _is_choice(choice: Table) -> bool:
    """Whether it is a choice of a server that does not say what object it sends."""
    message = table(choice.get("message"))
    if table(choice.get("delta")) is not None or (message is not None and "content" in message):
        return True
    return "finish_reason" in choice and (message is not None or "text" in choice)


OPENAI: Final = ProviderApi(
    name="openai",
    provider=_OPENAI,
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(*SHAPES, *TOOL_SHAPES),
    marks=(b'"choices"', b'"thread.run', *(b'"' + kind.encode() for kind in _STREAMED)),
)
