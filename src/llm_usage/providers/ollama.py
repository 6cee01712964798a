"""Ollama's own API.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.json_values import paths, read_counts, text
from llm_usage.providers.reader_interface import ProviderApi, UsageShape
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from llm_usage.json_values import Table

# Older servers leave the prompt's count out where it was cached: unknown, which is not 0.
_PATHS: Final = paths(
    input_tokens="prompt_eval_count",
    output_tokens="eval_count",
    cached_input_tokens="prompt_eval_cached_count",
)


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    embeds = _is_embeddings(event)
    if not (embeds or (event.get("done") is True and (not strict or _recognises(event)))):
        return None
    counts, refused = read_counts(event, _PATHS)
    if not counts and not refused:
        return None
    if embeds:
        counts.setdefault("output_tokens", 0)
    model = text(event.get("model"))
    # There are no ids, and every call has exactly one last line.
    return EventUsage(counts=counts, provider="ollama", refused=refused, model=model, opens=True, final=True)


def _is_embeddings(event: Table) -> bool:
    return isinstance(event.get("embeddings"), list) and "prompt_eval_count" in event and "model" in event


def _recognises(event: Table) -> bool:
    return isinstance(event.get("done"), bool) and "model" in event and "created_at" in event


OLLAMA: Final = ProviderApi(
    name="ollama",
    provider="ollama",
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(UsageShape("chat, generate and embeddings", "", _PATHS),),
    marks=(b'"done"',),
)
