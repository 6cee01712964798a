"""Google's generateContent.

https://ai.google.dev/api/generate-content#UsageMetadata
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.tokens.calls import EventUsage
from meterkit.tokens.jobs import interaction_of, outliving_state
from meterkit.tokens.json_values import dig, paths, read_counts, rows, table, text
from meterkit.tokens.providers.api import Api

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Counts, Table

# The wire is in camel case, the SDK's objects are not.
_PATHS: Final = paths(
    prompt="promptTokenCount prompt_token_count",
    tools="toolUsePromptTokenCount tool_use_prompt_token_count",
    answer="candidatesTokenCount candidates_token_count responseTokenCount response_token_count",
    reasoning_tokens="thoughtsTokenCount thoughts_token_count",
    total="totalTokenCount total_token_count",
    cached_input_tokens="cachedContentTokenCount cached_content_token_count",
)


_INTERACTION: Final = paths(
    prompt="total_input_tokens",
    tools="total_tool_use_tokens",
    answer="total_output_tokens",
    reasoning_tokens="total_thought_tokens",
    total="total_tokens",
    cached_input_tokens="total_cached_tokens",
)


def _settle(counts: Counts) -> Counts:
    prompt, answer, total = counts.get("prompt"), counts.get("answer"), counts.get("total")
    thoughts = counts.get("reasoning_tokens")
    entered = None if prompt is None else prompt + counts.get("tools", 0)
    output = answer
    if answer is None:
        # An answer that is blocked or still being thought about is not named; the total has the thoughts.
        output = thoughts
        if entered is not None and total is not None:
            output = max(0, total - entered)
    elif thoughts is not None and (entered is None or entered + answer != total or thoughts > answer):
        # Some endpoints count thoughts among the candidates: then the total is reached without them. Gemini
        # Live leaves them out of both.
        output = answer + thoughts
    known = {"input_tokens": entered, "output_tokens": output}
    return {**counts, **{name: count for name, count in known.items() if count is not None}}


def _interaction_usage(event: Table) -> EventUsage | None:
    """Usage of the Interactions API, https://ai.google.dev/api/interactions-api."""
    work = interaction_of(event)
    usage = None if work is None else table(work.get("usage"))
    if work is None or usage is None or outliving_state(event) == "pending":
        return None
    counts, refused = read_counts(usage, _INTERACTION)
    if not refused and "prompt" not in counts:
        return None
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider="gcp.gemini",
        refused=refused,
        call_id=text(work.get("id")),
        model=text(work.get("model")) or text(work.get("agent")),
        final=True,
        outlives=outliving_state(event) is not None,
    )


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    if "usage" in event or "interaction" in event:
        return _interaction_usage(event)
    usage = table(event.get("usageMetadata") or event.get("usage_metadata"))
    if usage is None or (strict and not _has_shape(event)):
        return None
    counts, refused = read_counts(usage, _PATHS)
    if not refused and ("prompt" not in counts or not counts.keys() & {"total", "answer"}):
        return None
    candidates = rows(event.get("candidates"))
    is_live = "responseTokenCount" in usage  # Of a turn.
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider="gcp.gemini",
        refused=refused,
        call_id=text(event.get("responseId", event.get("response_id"))),
        model=text(event.get("modelVersion", event.get("model_version"))),
        opens=is_live,
        final=is_live
        or _is_blocked(event)
        or any(_finish_reason(candidate) is not None for candidate in candidates),
        alone=not candidates,
    )


def _has_shape(event: Table) -> bool:
    named = ("modelVersion", "model_version", "responseId", "response_id")
    return _recognises(event) or any(isinstance(event.get(name), str) for name in named)


def _is_blocked(event: Table) -> bool:
    return table(event.get("promptFeedback", event.get("prompt_feedback"))) is not None


def _finish_reason(candidate: object) -> Any:
    found = dig(candidate, ("finishReason",))
    return dig(candidate, ("finish_reason",)) if found is None else found


def _recognises(event: Table) -> bool:
    candidates = rows(event.get("candidates"))
    if not candidates:
        is_live = table(event.get("serverContent")) is not None
        return is_live or _is_blocked(event) or interaction_of(event) is not None
    finished = isinstance(_finish_reason(candidates[0]), str)
    return finished or isinstance(dig(candidates[0], ("content", "parts")), list)


GEMINI: Final = Api(name="gemini", provider="gcp.gemini", usage_in=_usage_in, recognises=_recognises)
