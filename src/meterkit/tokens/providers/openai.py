"""Answers of OpenAI's APIs, and of the servers that speak like it: which they are, and where their usage is.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.jobs import outliving_state
from meterkit.tokens.json_values import dig, rows, table, text
from meterkit.tokens.providers.api import Api
from meterkit.tokens.providers.openai_units import (
    count_tool_calls,
    read_duration,
    read_other_calls,
    read_usage,
    settle,
)
from meterkit.tokens.providers.reported_cost import read_cost

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Table

_OPENAI: Final = "openai"
_IMAGE_EVENTS: Final = ("image_generation.completed", "image_edit.completed")
_MEDIA_EVENTS: Final = ("transcript.text.done", "transcription.done", "speech.audio.done", *_IMAGE_EVENTS)
_COMPACTION: Final = "response.compaction"
_WHOLE: Final = ("response", _COMPACTION, "batch", "thread.run", "conversation.response")
"""Objects that have the usage of a call, or of several."""
_SUMS: Final = ("batch", "thread.run")
"""Objects that have the sum of several calls."""
_CONVERSED: Final = "conversation.response.done"  # Mistral's; its figures stand in the event.
_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
"""The Realtime API's event of another model's call, which transcribes what the user has said."""
_LIVE: Final = ("session.usage.updated", "session.closed")
"""Events of the Live API that say how long a session is so far."""
_NESTED: Final = "response.event"
"""The Live API's event that has one of the Responses API in it."""
_DECISIONS: Final = frozenset({"predicate", "choice", "score", "refusal"})
_STANDARD_TIERS: Final = frozenset({"auto", "default", "standard"})


def _usage_of(holder: Table) -> Table | None:
    """The usage object, where it is or where some servers put it."""
    found = table(holder.get("usage"))
    if found is None:
        found = table(dig(holder, ("x_groq", "usage")))
    if found is None:
        choices = rows(holder.get("choices"))
        found = table(dig(choices[0], ("usage",))) if choices else None
    return found


def _holder(event: Table) -> Table | None:
    """The part of an event that is a response of the API, if the event is one."""
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
        return table(event.get("response"))
    if (
        isinstance(event.get("choices"), list)
        or event.get("object") in _WHOLE
        or kind in (*_MEDIA_EVENTS, *_LIVE, _CONVERSED, _TRANSCRIBED)
        or _is_embeddings(event)
        or _is_ranking(event)
        or _is_transcription(event)
        or _is_images(event)
        or _is_decision(event)
    ):
        return event
    return _inside(event)


def _inside(event: Table) -> Table | None:
    """The answer of a model that Cloudflare has inside an answer of its own."""
    result = table(event.get("result")) if isinstance(event.get("success"), bool) else None
    return None if dig(result, ("usage", "prompt_tokens")) is None else result


def _is_embeddings(event: Table) -> bool:
    data = rows(event.get("data"))
    return event.get("object") == "list" and bool(data) and dig(data[0], ("embedding",)) is not None


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
    return (
        table(event.get("usage")) is not None and "created" in event and isinstance(event.get("data"), list)
    )


def _is_decision(event: Table) -> bool:
    answers = rows(event.get("answers"))
    kind = dig(answers[0], ("type",)) if answers else None
    return isinstance(kind, str) and kind in _DECISIONS


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    nested = table(event.get("event")) if event.get("type") == _NESTED else None
    if nested is not None:
        event = nested
    if _is_part(event):
        return None
    state = outliving_state(event)
    holder = None if state == "pending" else _holder(event)
    if holder is None:
        if strict or state == "pending":
            return None
        holder = event
    usage: Table = _usage_of(holder) or {}
    found = _counts_in(event, usage)
    if found is None:
        return None
    counts, refused = found
    if holder.get("object") != _COMPACTION:
        counts = {**count_tool_calls(holder), **counts}
    cost, has_refused_cost = read_cost(usage)
    provider = _provider(holder, usage)
    choices = holder.get("choices")
    finished = any(dig(choice, ("finish_reason",)) is not None for choice in rows(choices))
    kind = event.get("type")
    is_transcribed = kind == _TRANSCRIBED
    session = table(event.get("session")) if kind in _LIVE else None
    named = holder if session is None else session
    return EventUsage(
        counts=counts,
        settle=settle,
        provider=provider,
        refused=refused or has_refused_cost,
        call_id=text(named.get("item_id" if is_transcribed else "id")),
        model=text(named.get("model")),
        opens=is_transcribed,
        final=(finished or not rows(choices)) and kind != _LIVE[0],
        alone=not rows(choices),
        outlives=state is not None,
        sums=holder.get("object") in _SUMS,
        context=_context(holder, usage),
        cost_micros=cost,
        others=_calls_of_others(holder, provider, cost),
    )


def _calls_of_others(holder: Table, provider: str, cost: Fraction | None) -> tuple[EventUsage, ...]:
    """The calls of other models inside an answer; an amount that the provider reports is for all of them."""
    found = tuple(read_other_calls(holder, provider))
    return found if cost is None else tuple(replace(other, cost_micros=Fraction(0)) for other in found)


def _counts_in(event: Table, usage: Table) -> tuple[Counts, bool] | None:
    if event.get("type") in _LIVE:
        return read_duration(usage, ("audio_seconds",))
    has_only_total = _is_embeddings(event) or _is_ranking(event)
    return read_usage(usage, has_only_total=has_only_total, makes_images=_is_images(event))


def _context(holder: Table, usage: Table) -> dict[str, str]:
    """As what a call was processed, where that may have a price of its own."""
    found: dict[str, str] = {}
    tier = text(holder.get("service_tier")) or text(usage.get("service_tier"))
    if tier is not None and tier not in _STANDARD_TIERS:
        found["service_tier"] = tier
    if holder.get("object") == "batch":
        found["processing"] = "batch"
    return found


def _is_part(event: Table) -> bool:
    """Whether it is a step of a run: the run's own usage has it."""
    named = event.get("object")
    return isinstance(named, str) and named.startswith("thread.run.step")


def _provider(holder: Table, usage: Table) -> str:
    """The provider, where an answer shows that it is not OpenAI."""
    names_asked = text(holder.get("provider")) is not None or "cost_details" in usage
    if "cost" in usage and (names_asked or "seconds" in usage):
        return "openrouter"  # It names the provider that it has asked, and what that charges.
    if "x_groq" in holder:
        return "groq"
    return "deepseek" if "prompt_cache_hit_tokens" in usage else _OPENAI


def _mistral_usage_in(event: Table, strict: bool) -> EventUsage | None:
    found = _usage_in(event, strict)
    if found is None or found.provider != _OPENAI:
        return found
    others = tuple(replace(other, provider=MISTRAL.provider) for other in found.others)
    return replace(found, provider=MISTRAL.provider, others=others)


def _recognises(event: Table) -> bool:
    kind = event.get("type")
    if isinstance(kind, str) and kind.startswith("response."):
        return True
    named = event.get("object")
    if isinstance(named, str):
        known = named.startswith(("chat.completion", "text_completion", "thread.run")) or named in _WHOLE
        return known or _is_embeddings(event) or _is_ranking(event)
    choices = rows(event.get("choices"))
    first = table(choices[0]) if choices else None
    if kind in (*_MEDIA_EVENTS, *_LIVE, _CONVERSED, _TRANSCRIBED) or _is_ranking(event):
        return True
    return first is not None and _is_choice(first)


def _is_choice(choice: Table) -> bool:
    """Whether it is a choice of a server that does not say what object it sends."""
    message = table(choice.get("message"))
    if table(choice.get("delta")) is not None or (message is not None and "content" in message):
        return True
    return "finish_reason" in choice and (message is not None or "text" in choice)


OPENAI: Final = Api(name="openai", provider=_OPENAI, usage_in=_usage_in, recognises=_recognises)
MISTRAL: Final = Api(
    name="mistral", provider="mistral_ai", usage_in=_mistral_usage_in, recognises=_recognises
)
