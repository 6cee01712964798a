"""Calls that a response reports, one accumulator each: within a call the last value counts, calls add up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from llm_usage.call_usage import COUNTED, CallUsage, cap_parts
from llm_usage.units import FIGURE_MAX, UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from fractions import Fraction

    from llm_usage.call_usage import Note, Source
    from llm_usage.json_values import Counts

CALLS_MAX: Final = 1_000
_FIGURES: Final = frozenset(COUNTED)
_KNOWN: Final = _FIGURES.union(UNITS)
_WRITES: Final = frozenset({"cache_write_5m_tokens", "cache_write_1h_tokens"})
_WRITTEN: Final = "cache_write_tokens"


@dataclass(slots=True, kw_only=True)
class EventUsage:
    """Usage that one event of a response reports.

    Attributes:
        counts: the API's own figures. :attr:`settle` normalises them: to the names of a call's fields, and
            units of the price table.
        refused: whether a figure was ignored because it cannot be one.
        settle: normalises the merged counts of a call.
        call_id: the provider's id of the call; None where the event has none.
        opens: whether a new call begins here, whatever its id.
        final: whether these are the call's last figures.
        closes: whether the call is over with it: what follows without an id is another one.
        alone: whether the event carries nothing but the figures.
        outlives: see :class:`llm_usage.call_usage.CallUsage`.
        adds: whether the counts come on top of those of earlier events of the call, not in their place.
        context: as what the call was processed; see :class:`llm_usage.call_usage.CallUsage`.
        cost_micros: what the provider says that the call costs, likewise.
        sums: whether the figures are those of several calls together.
        others: calls of other models inside this one; their ``call_id`` tells them apart within it.
    """

    counts: Counts
    provider: str | None
    settle: Callable[[Counts], Counts] = dict  # As they are.
    refused: bool = False
    call_id: str | None = None
    model: str | None = None
    opens: bool = False
    final: bool = False
    closes: bool = False
    alone: bool = False
    adds: bool = False
    outlives: bool = False
    context: Mapping[str, str] = field(default_factory=dict[str, str])
    cost_micros: Fraction | None = None
    sums: bool = False
    others: Sequence[EventUsage] = ()


class _Call:
    """The reports of one call so far."""

    __slots__ = (
        "alone",
        "call_id",
        "context",
        "cost_micros",
        "counts",
        "ended",
        "final",
        "first",
        "model",
        "others",
        "outlives",
        "provider",
        "refused",
        "sums",
    )

    def __init__(self, first: EventUsage) -> None:
        self.first = first
        self.call_id = first.call_id
        self.model: str | None = None
        self.provider: str | None = None
        self.counts: dict[str, int] = {}
        self.context: dict[str, str] = {}
        self.cost_micros: Fraction | None = None
        self.others: dict[str | None, _Call] = {}
        self.refused = self.final = self.alone = self.ended = self.outlives = self.sums = False

    def merge(self, event_usage: EventUsage) -> None:
        if not self.counts:
            # The API that names figures first knows best what they mean.
            self.first = event_usage
        if event_usage.adds:
            for name, count in event_usage.counts.items():
                self.counts[name] = count + self.counts.get(name, 0)
        elif _WRITES.isdisjoint(event_usage.counts):
            self.counts.update(event_usage.counts)
        else:
            self.counts.update(self._choose_writes(event_usage.counts))
        self.call_id = self.call_id or event_usage.call_id
        self.model = event_usage.model or self.model
        self.provider = self.provider or event_usage.provider
        self.context.update(event_usage.context)
        if event_usage.cost_micros is not None:
            # Of a gateway's stream the last event alone may show whose it is.
            self.cost_micros = event_usage.cost_micros
            self.first = replace(self.first, provider=event_usage.provider)
        self.refused |= event_usage.refused
        self.final |= event_usage.final
        if event_usage.closes:
            self.ended = True
        self.outlives |= event_usage.outlives
        self.sums |= event_usage.sums
        self.alone |= event_usage.alone
        for other in event_usage.others:
            self.others.setdefault(other.call_id, _Call(other)).merge(other)

    def _choose_writes(self, counts: Counts) -> Counts:
        """The counts of an event, with one breakdown of cache writes by time to live: its own, or the known.

        The event's own replaces the known one whole, unless it explains fewer of the same writes.
        """
        own, known = (sum(found.get(name, 0) for name in _WRITES) for found in (counts, self.counts))
        if own < known <= counts.get(_WRITTEN, self.counts.get(_WRITTEN, known)):
            return {name: count for name, count in counts.items() if name not in _WRITES}
        return {**dict.fromkeys(_WRITES & self.counts.keys(), 0), **counts}

    def is_continued_by(self, event_usage: EventUsage, *, spoken: bool) -> bool:
        """Whether an event of unknown id belongs to this call.

        Args:
            event_usage: the usage that the event reports.
            spoken: whether text came since this call's figures, or with the event.
        """
        if event_usage.opens or self.ended:
            return False
        if event_usage.adds and None not in (event_usage.call_id, self.call_id):
            return False  # Messages of models that run at once.
        if not self.final:
            return True
        if event_usage.call_id is None:
            return self.call_id is not None or not spoken or self._may_have_grown(event_usage)
        if self.call_id is None:
            return False
        # Some servers repeat the finishing chunk's figures, and nothing else, in one with an id of its own.
        repeats = event_usage.alone and not self.alone and not spoken
        return repeats and self.counts == event_usage.counts

    def _may_have_grown(self, event_usage: EventUsage) -> bool:
        """Whether the figures of an event may be this call's after more text: some servers end each chunk."""
        before, after = (self.first.settle(counts) for counts in (self.counts, event_usage.counts))
        is_larger = after.get("output_tokens", 0) > before.get("output_tokens", 0)
        return is_larger and after.get("input_tokens") == before.get("input_tokens")

    def usages(self, *, complete: bool) -> Iterator[CallUsage | None]:
        """Yield the usage of this call, and of those of other models inside it."""
        yield self.usage(complete=complete)
        for name, other in self.others.items():
            usage = other.usage(complete=complete or self.final)
            if usage is not None:
                own_id = None if self.call_id is None else f"{self.call_id}/{name}"
                yield replace(usage, response_id=own_id, outlives=self.outlives)

    def usage(self, *, complete: bool) -> CallUsage | None:
        if self.is_silent and not self.refused:
            return None
        settled = self.first.settle(self.counts)
        known = {name: count for name, count in settled.items() if name in _KNOWN}
        fitting = known
        if max(known.values(), default=0) > FIGURE_MAX:
            fitting = {name: count for name, count in known.items() if count <= FIGURE_MAX}
        bounded = cap_parts(fitting)
        notes: list[Note] = [] if bounded == fitting else ["beyond_whole"]
        if self.refused or len(fitting) < len(known):
            notes.append("refused")
        if "residual" in settled:
            notes.append("residual")
        if self.sums:
            notes.append("summed")
        source: Source = "reported" if complete or self.final else "partial"
        figures: dict[str, Any] = {name: count for name, count in bounded.items() if name in _FIGURES}
        return CallUsage(
            **figures,
            details=(
                {}
                if len(figures) == len(bounded)
                else {name: count for name, count in bounded.items() if name not in figures}
            ),
            context=tuple(sorted(self.context.items())) if self.context else (),
            reported_cost_micros=self.cost_micros,
            notes=tuple(notes),
            model=self.model,
            provider=self.first.provider or self.provider,
            response_id=self.call_id,
            outlives=self.outlives,
            source="missing" if self.is_silent else source,
        )

    @property
    def is_silent(self) -> bool:
        """Whether neither a figure nor an amount is known."""
        return not self.counts and self.cost_micros is None


class ReportedCalls:
    """The calls of one response, in the order in which they were first seen.

    Args:
        most: calls that are distinguished.

    Attributes:
        overflowed: whether there were more, which are not counted.
    """

    __slots__ = ("_by_id", "_calls", "_current", "_most", "overflowed")

    def __init__(self, *, most: int = CALLS_MAX) -> None:
        self._most = most
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._current: _Call | None = None
        self.overflowed = False

    def add(self, event_usage: EventUsage, *, spoken: bool = False) -> None:
        """Merge what an event says into the call that it belongs to.

        A new call opens where the event says so, or where another id, or without ids other figures and text,
        follows a call that has its last figures: some servers send every chunk under an id of its own.

        Args:
            event_usage: the usage that the event reports.
            spoken: whether text came since the figures before it, or with this event.
        """
        call = self._by_id.get(event_usage.call_id) if event_usage.call_id else None
        current = self._current
        if call is None and current is not None and current.is_continued_by(event_usage, spoken=spoken):
            call = current
        if call is None:
            if len(self._calls) == self._most:
                self.overflowed = True
                return
            call = _Call(event_usage)
            self._calls.append(call)
        call.merge(event_usage)
        if call.call_id:
            self._by_id[call.call_id] = call
        self._current = call

    def end(self) -> None:
        """The stream of the current call is over: what follows without an id is another call."""
        if self._current is not None:
            self._current.ended = True

    def keep_newest(self, most: int) -> None:
        """Forget all calls but the newest ones."""
        self._calls = self._calls[-most:]
        kept = set(map(id, self._calls))
        self._by_id = {name: call for name, call in self._by_id.items() if id(call) in kept}

    def usages(self, *, complete: bool) -> tuple[CallUsage, ...]:
        """Usage of the calls.

        Args:
            complete: whether nothing more would have come; else figures that were not the last are partial.
        """
        found = (usage for call in self._calls for usage in call.usages(complete=complete))
        return tuple(usage for usage in found if usage is not None)

    @property
    def unreported(self) -> EventUsage | None:
        """The names of the last call without figures; None: every call has figures."""
        call = next((call for call in reversed(self._calls) if call.is_silent and not call.refused), None)
        if call is None:
            return None
        return EventUsage(counts={}, provider=call.provider, model=call.model, call_id=call.call_id)

    def __len__(self) -> int:
        """The number of calls with figures; events that only name a model do not count."""
        return sum(1 for call in self._calls if call.counts or call.refused or call.final)
