"""Google's generateContent.

https://ai.google.dev/api/generate-content#UsageMetadata
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.calls import Sighting
from meterkit.tokens.figures import Figures
from meterkit.tokens.providers.api import Api
from meterkit.tokens.shape import dig, read_counts, rows, table, text

if TYPE_CHECKING:
    from meterkit.tokens.shape import Counts, Paths, Table

__all__ = ["GEMINI"]

# The wire is in camel case, the SDK's objects are not.
_PATHS: Final[Paths] = {
    "prompt": (("promptTokenCount",), ("prompt_token_count",)),
    "tools": (("toolUsePromptTokenCount",), ("tool_use_prompt_token_count",)),
    "answer": (
        ("candidatesTokenCount",),
        ("candidates_token_count",),
        ("responseTokenCount",),
        ("response_token_count",),
    ),
    "thoughts": (("thoughtsTokenCount",), ("thoughts_token_count",)),
    "total": (("totalTokenCount",), ("total_token_count",)),
    "cached": (("cachedContentTokenCount",), ("cached_content_token_count",)),
}


def _settle(counts: Counts) -> Figures:
    prompt, tools, total = counts.get("prompt"), counts.get("tools", 0), counts.get("total")
    answer, thoughts = counts.get("answer"), counts.get("thoughts")
    entered = None if prompt is None else prompt + tools
    output = answer
    if answer is None:
        # An answer that is blocked or still being thought about is not named; the total has the thoughts.
        output = thoughts
        if entered is not None and total is not None:
            output = max(0, total - entered)
    elif thoughts is not None:
        # Some endpoints count thoughts among the candidates: then the total is reached without them.
        within = entered is not None and entered + answer == total
        output = answer if within else answer + thoughts
    return Figures(
        input_tokens=entered,
        output_tokens=output,
        cached_input_tokens=counts.get("cached"),
        reasoning_tokens=thoughts,
    )


def _see(event: Table, strict: bool) -> Sighting | None:
    usage = table(event.get("usageMetadata"))
    if usage is None:
        usage = table(event.get("usage_metadata"))
    if usage is None or (strict and not _has_shape(event)):
        return None
    counts, refused = read_counts(usage, _PATHS)
    if not refused and ("prompt" not in counts or not counts.keys() & {"total", "answer"}):
        return None
    candidates = rows(event.get("candidates"))
    finished = any(
        dig(candidate, (name,)) is not None
        for candidate in candidates
        for name in ("finishReason", "finish_reason")
    )
    return Sighting(
        counts=counts,
        settle=_settle,
        provider="gcp.gemini",
        refused=refused,
        call_id=text(event.get("responseId", event.get("response_id"))),
        model=text(event.get("modelVersion", event.get("model_version"))),
        final=finished or _is_blocked(event),
        alone=not candidates,
    )


def _has_shape(event: Table) -> bool:
    named = ("modelVersion", "model_version", "responseId", "response_id")
    return _knows(event) or any(isinstance(event.get(name), str) for name in named)


def _is_blocked(event: Table) -> bool:
    return table(event.get("promptFeedback", event.get("prompt_feedback"))) is not None


def _knows(event: Table) -> bool:
    candidates = rows(event.get("candidates"))
    if not candidates:
        return _is_blocked(event)
    first = candidates[0]
    finished = any(isinstance(dig(first, (name,)), str) for name in ("finishReason", "finish_reason"))
    return finished or isinstance(dig(first, ("content", "parts")), list)


GEMINI: Final = Api(name="gemini", provider="gcp.gemini", see=_see, knows=_knows)
