"""Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from llm_usage.json_values import Paths, dig, paths, read_counts, rows, short_id, table, text
from llm_usage.providers.reader_interface import (
    OPENROUTER,
    ProviderApi,
    UsageShape,
    context_of,
    include_cache_tokens,
    is_openrouter,
    read_cost,
)
from llm_usage.reported_calls import EventUsage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_usage.json_values import Counts, Table

_ITERATED: Final = paths(
    input_tokens="input_tokens",
    output_tokens="output_tokens",
    cached_input_tokens="cache_read_input_tokens",
    cache_write_tokens="cache_creation_input_tokens",
)
_WRITES: Final = paths(
    cache_write_5m_tokens="ephemeral_5m_input_tokens", cache_write_1h_tokens="ephemeral_1h_input_tokens"
)
_PATHS: Final = Paths(
    {
        **_ITERATED,
        **paths(
            reasoning_tokens="output_tokens_details.thinking_tokens",
            web_searches="server_tool_use.web_search_requests",
            code_executions="server_tool_use.code_execution_requests",
        ),
    }
)
_ANTHROPIC: Final = "anthropic"
_OF_ITERATIONS: Final = "iterated_"
_ADVISOR: Final = "advisor_message"
_FALLBACK: Final = "fallback_message"
# A prompt of more tokens costs more: https://docs.claude.com/en/docs/build-with-claude/context-windows
_LONG_PROMPT: Final = 200_000
_DATE: Final = re.compile(r"[-@]\d{8}$")
_STREAMED: Final = ("message_start", "message_delta", "message_stop")
# Of sessions of managed agents, https://platform.claude.com/docs/en/managed-agents: each request of a model,
# and those of an evaluation together; then sums of all so far.
_REQUEST_END: Final = "span.model_request_end"
_EVALUATION_END: Final = "span.outcome_evaluation_end"
_SESSION_SUMS: Final = ("session", "session.usage", "session_thread")
_SESSION: Final = (_REQUEST_END, _EVALUATION_END, "session.usage")
_TYPES: Final = (*_STREAMED, *_SESSION, "content_block_start", "content_block_delta", "content_block_stop")


class _Iterations:
    """The entries of ``usage.iterations``: those of the response's own model, and those of others.

    https://github.com/anthropics/anthropic-sdk-python (`BetaIterationsUsage`)

    Args:
        usage: of the response.
        model: that the response names; None: its event names none.

    Attributes:
        model: that served the response: a fallback's, where one did.
        own: sums over the entries of that model.
        served: figures of a fallback's own attempt, which replace those of the attempt before it.
        sums: whether the response's figures are those of several prompts, all of them short.
        others: advisors, and attempts of models that declined.
        refused: whether a figure was ignored.
    """

    def __init__(self, usage: Table, model: str | None, context: Mapping[str, str]) -> None:
        entries = [entry for entry in map(table, rows(usage.get("iterations"))) if entry]
        fallback = _fallback_in(entries)
        named = (text(entry.get("model")) for entry in reversed(entries) if entry.get("type") != _ADVISOR)
        self.model = text(fallback.get("model")) or model or next(filter(None, named), None)
        self.own = Counter[str]()
        self.served: dict[str, int] = {}
        self.others: list[EventUsage] = []
        self.refused = False
        prompts = list[int]()
        advisors = 0
        for nth, entry in enumerate(entries, 1):
            counts, odd = _read(entry, _ITERATED)
            by = text(entry.get("model"))
            if entry.get("type") == _ADVISOR:
                advisors += 1
                self._add_other(f"advisor/{advisors}", by, counts, context, refused=odd)
            elif by is not None and _strip_date(by) != _strip_date(self.model):
                if counts.get("output_tokens"):  # Anthropic does not charge an attempt without output.
                    self._add_other(f"{by}/{nth}", by, counts, context, refused=odd)
            else:
                self.refused |= odd
                self.own.update({_OF_ITERATIONS + name: count for name, count in counts.items()})
                prompts.append(include_cache_tokens(counts).get("input_tokens", 0))
                if entry is fallback:
                    self.served = {"cache_write_5m_tokens": 0, "cache_write_1h_tokens": 0, **counts}
        self.sums = len(prompts) > 1 and max(prompts) <= _LONG_PROMPT

    def _add_other(
        self, call_id: str, model: str | None, counts: Counts, context: Mapping[str, str], *, refused: bool
    ) -> None:
        self.others.append(
            EventUsage(
                counts=counts,
                settle=include_cache_tokens,
                provider=_ANTHROPIC,
                refused=refused,
                call_id=call_id,
                model=model,
                context={name: value for name, value in context.items() if name == "processing"},
            )
        )


def _read(usage: Table, places: Paths) -> tuple[dict[str, int], bool]:
    counts, refused = read_counts(usage, places)
    written = table(usage.get("cache_creation"))
    if written is not None:
        by_time, odd = read_counts(written, _WRITES)
        counts.update(by_time)
        refused |= odd
    return counts, refused


def _fallback_in(entries: Sequence[Table]) -> Table:
    """The attempt of a fallback that served the response; empty where none did."""
    nothing: Table = {}
    return next((entry for entry in entries if entry.get("type") == _FALLBACK), nothing)


def _strip_date(model: str | None) -> str:
    return _DATE.sub("", model or "")


def _settle(counts: Counts) -> Counts:
    # The sum of the iterations also has those that the figure itself leaves out.
    largest: dict[str, int] = {}
    for key, count in counts.items():
        name = key.removeprefix(_OF_ITERATIONS)
        largest[name] = max(count, largest.get(name, 0))
    return include_cache_tokens(largest)


def _usage_in(event: Table, strict: bool) -> EventUsage | None:
    kind = event.get("type")
    if kind in (_REQUEST_END, _EVALUATION_END, *_SESSION_SUMS):
        return None if kind in _SESSION_SUMS else _span_usage(event)
    if kind in ("message_start", "message_stop"):
        holder = table(event.get("message"))
    elif kind in ("message", "message_delta") or not strict:
        holder = event
    else:
        return None
    usage = None if holder is None else table(holder.get("usage"))
    if holder is None or usage is None or "output_tokens" not in usage:
        return None
    is_delta = kind == "message_delta"
    if not (is_delta or "input_tokens" in usage):
        return None
    counts, refused = _read(usage, _PATHS)
    context = context_of(**{name: usage.get(name) for name in ("service_tier", "speed", "inference_geo")})
    iterations = _Iterations(usage, text(holder.get("model")), context)
    if is_delta and not iterations.served:
        # What went in is cumulative: a zero says no more than that the end of the stream does not repeat it.
        counts = {name: count for name, count in counts.items() if count or name == "output_tokens"}
    cost, has_refused_cost = read_cost(usage)
    others = iterations.others
    if cost is not None:  # It is for all of them.
        others = [replace(other, cost_micros=Fraction(0)) for other in others]
    return EventUsage(
        counts={**(iterations.served if is_delta else {}), **counts, **iterations.own},
        settle=_settle,
        provider=OPENROUTER if is_openrouter(holder, usage) else _ANTHROPIC,
        refused=refused or iterations.refused or has_refused_cost,
        call_id=None if is_delta else short_id(holder.get("id")),
        model=iterations.model,
        opens=kind == "message_start",
        final=dig(event, ("delta", "stop_reason")) is not None if is_delta else kind != "message_start",
        context=context,
        cost_micros=cost,
        sums=iterations.sums,
        others=others,
    )


def _span_usage(event: Table) -> EventUsage | None:
    """Usage of a request, or of an evaluation, in a session of a managed agent; neither names its model."""
    is_request = event.get("type") == _REQUEST_END
    usage = table(event.get("model_usage" if is_request else "usage"))
    if usage is None:
        return None
    counts, refused = _read(usage, _PATHS)
    return EventUsage(
        counts=counts,
        settle=_settle,
        provider=_ANTHROPIC,
        refused=refused,
        call_id=short_id(event.get("id")),
        opens=True,
        final=True,
        context=context_of(speed=usage.get("speed")),
        sums=not is_request,
    )


def _recognises(event: Table) -> bool:
    kind = event.get("type")
    return isinstance(event.get("content"), list) if kind == "message" else kind in _TYPES


ANTHROPIC: Final = ProviderApi(
    name="anthropic",
    provider=_ANTHROPIC,
    usage_in=_usage_in,
    recognises=_recognises,
    shapes=(
        UsageShape("Messages, and requests of managed agents", "usage, model_usage", _PATHS),
        UsageShape("cache writes by time to live", "usage.cache_creation", _WRITES),
        UsageShape("attempts and advisors inside a message", "usage.iterations[]", _ITERATED),
    ),
    marks=(b'"message_start"', b'"content_block_'),
)
