"""Ollama's own API.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.providers.api import Api
from meterkit.tokens.shape import read_counts, text

if TYPE_CHECKING:
    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["OLLAMA"]

_PATHS: Final[Paths] = {
    "input": (("prompt_eval_count",),),
    "output": (("eval_count",),),
    "cached": (("prompt_eval_cached_count",),),
}


def _settle(counts: Counts) -> Figures:
    # Older servers leave the prompt's count out where it was cached: unknown, which is not 0.
    return Figures(
        input_tokens=counts.get("input"),
        output_tokens=counts.get("output"),
        cached_input_tokens=counts.get("cached"),
    )


def _see(event: Table, strict: bool) -> Sighting | None:
    embeds = _is_embeddings(event)
    if not (embeds or event.get("done") is True) or (strict and not (embeds or _knows(event))):
        return None
    counts, refused = read_counts(event, _PATHS)
    if not counts and not refused:
        return None
    if embeds:
        counts.setdefault("output", 0)
    # There are no ids, and every call has exactly one last line.
    return Sighting(
        counts=counts,
        settle=_settle,
        provider="ollama",
        refused=refused,
        model=text(event.get("model")),
        opens=True,
        final=True,
    )


def _is_embeddings(event: Table) -> bool:
    return isinstance(event.get("embeddings"), list) and "prompt_eval_count" in event and "model" in event


def _knows(event: Table) -> bool:
    return isinstance(event.get("done"), bool) and "model" in event and "created_at" in event


OLLAMA: Final = Api(name="ollama", provider="ollama", see=_see, knows=_knows)
