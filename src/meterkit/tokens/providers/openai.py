"""OpenAI's Chat Completions, Completions, Responses, Embeddings, and the servers that speak like it.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.jobs import outliving_state
from meterkit.tokens.json_values import dig, paths, read_counts, rows, table, text
from meterkit.tokens.providers.api import Api

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Table

_CHAT: Final = paths(
    input_tokens="prompt_tokens",
    output_tokens="completion_tokens",
    total="total_tokens",
    cached_input_tokens="prompt_tokens_details.cached_tokens prompt_cache_hit_tokens cached_tokens",
    cache_write_tokens="prompt_tokens_details.cache_write_tokens",
    reasoning_tokens="completion_tokens_details.reasoning_tokens",
    connector="connector_tokens",
)
_RESPONSES: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    total="total_tokens",
    # The Realtime API has the singular.
    cached_input_tokens="input_tokens_details.cached_tokens input_token_details.cached_tokens",
    cache_write_tokens="input_tokens_details.cache_write_tokens",
    reasoning_tokens="output_tokens_details.reasoning_tokens output_token_details.reasoning_tokens",
)
# Embeddings and rankings of Voyage, Jina and vLLM.
_TOTAL: Final = paths(input_tokens="total_tokens")
_MEDIA_EVENTS: Final = (
    *("transcript.text.done", "speech.audio.done"),
    *("image_generation.completed", "image_edit.completed"),
)
_WHOLE: Final = ("response", "batch", "thread.run", "conversation.response")
"""Objects that have the usage of a call, or of several."""
_CONVERSED: Final = "conversation.response.done"  # Mistral's; its figures stand in the event.


def _settle(counts: Counts) -> Counts:
    prompt, completion, total = map(counts.get, ("input_tokens", "output_tokens", "total"))
    if prompt is None or total is None:
        return counts
    if "connector" in counts and completion is not None:
        # Mistral's tools have read or found them: they went in, and the total has them once.
        return {**counts, "input_tokens": max(prompt, total - completion)}
    # Embeddings have no completion, and some servers leave hidden reasoning out of it: the total has it.
    residual = max(0, total - prompt - (completion or 0))
    if completion is None:
        return {**counts, "output_tokens": residual}
    if not residual:
        return counts
    more = {"output_tokens": completion + residual, "residual": residual}
    return {"reasoning_tokens": residual, **counts, **more}


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
        or kind in _MEDIA_EVENTS
        or kind == _CONVERSED
        or _is_embeddings(event)
        or _is_ranking(event)
        or _is_media(event)
    ):
        return event
    return None


def _is_embeddings(event: Table) -> bool:
    data = rows(event.get("data"))
    return event.get("object") == "list" and bool(data) and dig(data[0], ("embedding",)) is not None


def _is_ranking(event: Table) -> bool:
    found = rows(event.get("results")) or rows(event.get("data"))
    return bool(found) and dig(found[0], ("relevance_score",)) is not None


def _is_media(event: Table) -> bool:
    """Whether it is a transcription or a list of images; only their usage tells them from other JSON."""
    usage = table(event.get("usage"))
    if usage is None:
        return False
    transcription = isinstance(event.get("text"), str) and usage.get("type") in ("tokens", "duration")
    return transcription or (isinstance(event.get("data"), list) and "created" in event)


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    if _is_part(event):
        return None
    state = outliving_state(event)
    holder = None if state == "pending" else _holder(event)
    if holder is None:
        if strict or state == "pending":
            return None
        holder = event
    usage = _usage_of(holder)
    if usage is None:
        return None
    if "prompt_tokens" in usage and ("completion_tokens" in usage or "total_tokens" in usage):
        counts, refused = read_counts(usage, _CHAT)
    elif "input_tokens" in usage and "output_tokens" in usage:
        counts, refused = read_counts(usage, _RESPONSES)
    elif "total_tokens" in usage and (_is_embeddings(event) or _is_ranking(event)):
        counts, refused = read_counts(usage, _TOTAL)
        counts = {"output_tokens": 0, **counts}
    elif usage.get("type") == "duration":
        # A transcription that is measured in seconds: there are no tokens to miss.
        counts, refused = {}, False
    else:
        return None
    choices = holder.get("choices")
    finished = any(dig(choice, ("finish_reason",)) is not None for choice in rows(choices))
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider=_provider(holder, usage),
        refused=refused,
        call_id=text(holder.get("id")),
        model=text(holder.get("model")),
        final=not rows(choices) or finished,
        alone=not rows(choices),
        outlives=state is not None,
        sums=holder.get("object") == "batch",
    )


def _is_part(event: Table) -> bool:
    """Whether it is a step of a run: the run's own usage has it."""
    named = event.get("object")
    return isinstance(named, str) and named.startswith("thread.run.step")


def _provider(holder: Table, usage: Table) -> str:
    if "x_groq" in holder:
        return "groq"
    return "deepseek" if "prompt_cache_hit_tokens" in usage else "openai"


def _mistral_usage_in(event: Table, strict: bool) -> EventUsage | None:
    found = _usage_in(event, strict)
    return None if found is None else replace(found, provider=MISTRAL.provider)


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
    if kind in _MEDIA_EVENTS or kind == _CONVERSED or _is_ranking(event):
        return True
    return first is not None and _is_choice(first)


def _is_choice(choice: Table) -> bool:
    """Whether it is a choice of a server that does not say what object it sends."""
    message = table(choice.get("message"))
    if table(choice.get("delta")) is not None or (message is not None and "content" in message):
        return True
    return "finish_reason" in choice and (message is not None or "text" in choice)


OPENAI: Final = Api(name="openai", provider="openai", usage_in=_usage_in, recognises=_recognises)
MISTRAL: Final = Api(
    name="mistral", provider="mistral_ai", usage_in=_mistral_usage_in, recognises=_recognises
)
