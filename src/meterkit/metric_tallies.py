"""Counters for Prometheus and OpenTelemetry: cheap to increment, collected when metrics are read."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from fractions import Fraction
from time import perf_counter
from typing import TYPE_CHECKING, Final, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Iterable

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the histogram of durations, in seconds; one more bucket has the rest."""

_UNTIMED: Final = 7
_MODELS_MOST: Final = 100
_NAME_MAX: Final = 100

CallT = TypeVar("CallT")
ReplyT = TypeVar("ReplyT")


class Tallies:
    """Counters of one kit's decisions in this process. They name no customer.

    Attributes:
        requests: (plan, outcome, reason) to their number; see :meth:`count_request`.
        degraded: requests that the store did not decide.
        excess: units by meter that were admitted beyond limits while the store was down.
        durations: histogram of timed decisions, by :data:`BUCKETS_S`.
        duration_s: total duration of these.
        llm: (model, provider) to the exact cost of calls, and the charge to customers' balances, in
            micro-units; after a hundred pairs the rest is ``other``, because clients choose names.
        unpriced: (model, provider) to the calls of models without a price.
        revenue: (model, provider) to the revenue of the rows that this process wrote to the audit log; empty
            if the plans file has several currencies.
        revenue_in: currency to the same, if the plans file has several.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}
        self.degraded = 0
        self.excess = Counter[str]()
        self.durations = [0] * (len(BUCKETS_S) + 1)
        self.duration_s = 0.0
        self.llm: dict[tuple[str, str], tuple[Fraction, Fraction]] = {}
        self.revenue: dict[tuple[str, str], Fraction] = {}
        self.revenue_in: dict[str, dict[tuple[str, str], Fraction]] = {}
        self.unpriced: dict[tuple[str, str], int] = {}
        _everywhere.add(self)

    def count_request(self, plan: str | None, outcome: str, reason: str | None, *, degraded: bool) -> None:
        """Count a request.

        Args:
            plan: the key of its customer's plan; None if the customer is unknown.
            outcome: its outcome, or ``refused``.
            reason: why it was refused, or in shadow would have been.
            degraded: whether it was decided without the store.
        """
        key = (plan or "none", outcome, reason or "none")
        requests = self.requests
        requests[key] = requests.get(key, 0) + 1
        if degraded:
            self.degraded += 1

    def count_call(
        self, model: str | None, provider: str | None, *, cost: Fraction, charged: Fraction
    ) -> None:
        """Count what calls of a model cost and are charged, in micro-units."""
        key = _tally_key(model, provider, self.llm)
        before = self.llm.get(key, (Fraction(0), Fraction(0)))
        self.llm[key] = before[0] + cost, before[1] + charged

    def add_unpriced(self, model: str, provider: str | None, calls: int) -> None:
        """Count calls of a model without a price."""
        key = _tally_key(model, provider, self.unpriced)
        self.unpriced[key] = self.unpriced.get(key, 0) + calls

    def count_revenue(
        self, model: str | None, provider: str | None, revenue: Fraction, currency: str | None = None
    ) -> None:
        """Count the revenue of an audit row, in micro-units of a currency; None: there is only one."""
        known = self.revenue if currency is None else self.revenue_in.setdefault(currency, {})
        key = _tally_key(model, provider, known)
        known[key] = known.get(key, Fraction(0)) + revenue

    def time_calls(
        self, call: Callable[[CallT], asyncio.Future[ReplyT]]
    ) -> Callable[[CallT], asyncio.Future[ReplyT]]:
        """Wrap a call: time one reply in eight, because timing costs 3 µs."""
        nth = 0

        def timed_call(asked: CallT) -> asyncio.Future[ReplyT]:
            nonlocal nth
            nth += 1
            if nth & _UNTIMED:
                return call(asked)
            began = perf_counter()

            def replied(_: asyncio.Future[ReplyT]) -> None:
                took = perf_counter() - began
                self.durations[bisect_left(BUCKETS_S, took)] += 1
                self.duration_s += took

            reply = call(asked)
            reply.add_done_callback(replied)
            return reply

        return timed_call


_everywhere: WeakSet[Tallies] = WeakSet()


def all_tallies() -> Iterable[Tallies]:
    """Tallies of all kits of this process."""
    return list(_everywhere)


def _tally_key(
    model: str | None, provider: str | None, known: Collection[tuple[str, str]]
) -> tuple[str, str]:
    key = ((model or "none")[:_NAME_MAX], (provider or "none")[:_NAME_MAX])
    return key if key in known or len(known) < _MODELS_MOST else ("other", "other")
