"""Decision: allowed or refused, why, and the figures of its limits."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

Reason = Literal[
    "suspended",
    "payment_required",
    "feature",
    "storage",
    "seats",
    "concurrency",
    "rate",
    "included",
    "cap",
    "credits",
    "spend",
    "anonymous",
    "invalid_customer",
    "identify",
    "in_flight",
    "store",
]

ProblemCode = Literal["request-above-ceiling", "model-not-priced", "path-ambiguous"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One limit that is reported to a client.

    Attributes:
        name: ``METER-WINDOW`` for a rate, ``route-WINDOW`` for a route's own, ``METER-period`` for a ceiling,
            ``METER-concurrency``; ``spend-period`` and ``spend-WINDOW`` for a budget; the meter's own name
            for a gauge. No response header shows a gauge, nor usage billed without a cap.
        meter: what it limits; empty for a route's own rate, which limits requests.
        quota: units per window; for a period included + cap; for concurrency requests in flight; for a
            gauge the most that it may be filled.
        window_s: the window of a rate in whole seconds; None for all others.
        quota_unit: the unit as the ``qu`` parameter names it; None where the unit is the request.
    """

    name: str
    meter: str
    kind: Literal["rate", "period", "concurrency", "gauge", "uncapped"]
    quota: int
    window_s: int | None = None
    quota_unit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeLevel:
    """Figures of a gauge that may not grow, in its unit.

    Attributes:
        meter: the gauge.
        unit: name of its unit.
        limit: highest level.
        used: level, with quantities set aside for requests in flight.
        requested: requested growth.
    """

    meter: str
    unit: str
    limit: int
    used: int
    requested: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendLevel:
    """Figures of a used-up budget, in minor units of the currency.

    Attributes:
        limit_cents: the budget.
        spent_cents: spend, that of requests in flight included, rounded up.
    """

    limit_cents: int
    spent_cents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyShortfall:
    """Amounts where a balance in money or a budget refuses, in minor units of the currency, exactly.

    Attributes:
        needed: the most that the request may cost; None: it holds nothing, and anything left would do.
        left: of the balance or the budget, less what requests in flight hold; never below 0.
        is_balance: whether it is a balance in US dollars, not a budget in the customer's currency.
    """

    needed: Decimal | None
    left: Decimal
    is_balance: bool

    @classmethod
    def of(cls, needed_micros: int, left_micros: int, micros: int, *, is_balance: bool) -> MoneyShortfall:
        """Convert micro-units to minor units of ``micros`` micro-units each."""
        needed = Decimal(needed_micros) / micros if needed_micros > 1 else None
        return cls(needed=needed, left=Decimal(max(0, left_micros)) / micros, is_balance=is_balance)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestProblem:
    """Refusal of a request for its content, whatever its customer has left: waiting does not help.

    Attributes:
        code: the last part of the problem's type, such as ``request-above-ceiling``.
        detail: what was found, what is allowed and what to do.
        members: the members that only this type has.
    """

    code: ProblemCode
    detail: str
    members: Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Decision about a request, and the quantity that is left.

    Attributes:
        customer: the customer's id, or the address of an anonymous one; None if unknown.
        plan: the key of the active plan; None if the customer is unknown.
        allowed: whether the request is served.
        reason: reason of the refusal; None: it is allowed, or has a ``problem``. With ``shadow``, the reason
            for which it would have been refused.
        limit: the name of the policy nearest to exhaustion; on a refusal the violated policy with the
            longest wait; None where no policy applies.
        remaining: units left under ``limit``, never below 0; None where no policy applies.
        reset_after: until more is left under ``limit`` than now, or as much as was asked where that is
            more, if nothing else is used meanwhile; a ceiling waits for the end of its period. None where no
            policy applies or no time is known.
        retry_after: until the same request would be admitted if nothing else is used; None where it was
            allowed, or where waiting does not help.
        violated: the names of all violated policies, in the order of the plans file.
        gauge: figures for the reasons ``storage`` and ``seats``; None with any other.
        spend: figures for the reason ``spend``; None with any other.
        shortfall: the amounts needed and left where a balance in money or a budget refuses; None otherwise.
        fault: which id is not allowed, and what was found instead of an allowed one, without the id; None
            with any other reason than ``invalid_customer``.
        problem: why the request is refused for what it asks, or None. With ``shadow`` likewise.
        degraded: whether the store did not answer and the request was decided without it.
        shadow: whether enforcement is ``shadow``: ``allowed`` is True even beyond limits.
    """

    customer: str | None = None
    plan: str | None = None
    allowed: bool
    reason: Reason | None = None
    limit: str | None = None
    remaining: int | None = None
    reset_after: timedelta | None = None
    retry_after: timedelta | None = None
    violated: tuple[str, ...] = ()
    gauge: GaugeLevel | None = None
    spend: SpendLevel | None = None
    shortfall: MoneyShortfall | None = None
    fault: str | None = None
    problem: RequestProblem | None = None
    degraded: bool = False
    shadow: bool = False

    @property
    def cause(self) -> str | None:
        """The reason, or the code of the problem: as logs, metrics and spans name it."""
        return self.reason if self.problem is None else self.problem.code
