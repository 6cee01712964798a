"""One row for each customer, and the figures over all rows. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from meterkit.catalog import Catalog
    from meterkit.insights.refusing_limits import RefusingLimit
    from meterkit.store.customer_usage import CustomerUsage, MeterUsage

NO_END_MS: Final = 253_402_300_799_000
"""The last instant of a four-digit year: no time is known from which a refused customer is served."""
NEAR_PER_MILLE: Final = 800
"""From this share of a limit on, a customer is near it."""

DELIVERY: Final = (
    "recorded",
    "pending",
    "unlinked",
    "queued",
    "leased",
    "parked",
    "delivered",
    "late",
    "dead",
)
"""The states whose units are summed over all customers for each meter that goes to Stripe."""


class CustomerRow(NamedTuple):
    """One customer in a snapshot.

    Attributes:
        status: of the subscription; empty: there is none.
        meter: whose limit is nearest; empty: no meter has a limit.
        used: of that meter, holds included.
        ceiling: what can be used of it in all: included, grants, credits and overage up to the cap.
        per_mille: ``used`` as a share of ``ceiling``, rounded down; 1000 if that is 0.
        unlinked: units of all meters that wait for a link to Stripe.
        refused: policy of the limit that refuses with the longest wait; empty: none refuses.
        refused_until_ms: until then; :data:`NO_END_MS`: time alone does not help; 0: none refuses.
    """

    customer: str
    plan: str
    status: str
    access: str
    meter: str
    refused: str
    used: int
    ceiling: int
    per_mille: int
    unlinked: int
    refused_until_ms: int


class UsageRow(NamedTuple):
    """Units of a customer's meter in this period, by delivery state."""

    customer: str
    meter: str
    recorded: int
    pending: int
    unlinked: int
    queued: int
    leased: int
    parked: int
    delivered: int
    late: int
    dead: int


class CustomerTotals(TypedDict):
    """The figures over all customers.

    ``plans``, ``statuses`` and ``accesses`` count customers; ``refused`` those whom a limit refuses, ``near``
    those near a limit, ``unlinked`` those with usage that waits for a link. ``meters`` has, by meter and
    state of delivery, the units of this period.
    """

    customers: int
    plans: dict[str, int]
    statuses: dict[str, int]
    accesses: dict[str, int]
    refused: int
    near: int
    unlinked: int
    meters: dict[str, dict[str, int]]


class RevenueFigures(TypedDict):
    """Revenue at the time of a snapshot. Money is in micro-cents.

    ``figures`` has each figure of :class:`~meterkit.insights.revenue.revenue.RevenueDay` but ``day`` and
    ``cac`` by name and currency; ``plans`` plan, currency and MRR; ``growth`` day, currency and the
    movements of that day, the oldest first.
    """

    day: str
    figures: dict[str, dict[str, float | None]]
    cac: int | None
    plans: list[tuple[str, str, int]]
    growth: list[tuple[str, str, dict[str, int]]]


ACTIVITY_DAYS: Final = 30
"""Days of a snapshot's activity, that of the snapshot included."""


class DailyActivity(TypedDict):
    """Activity of all customers by day (days since 1970, UTC), the oldest first.

    ``usage`` has day, meter and recorded units; ``deliveries`` day and meter events that Stripe accepted.
    """

    usage: list[tuple[int, str, int]]
    deliveries: list[tuple[int, int]]


class OverviewFigures(TypedDict):
    """All figures of a snapshot, as JSON holds them.

    ``revenue`` is None where there is none yet.
    """

    customers: CustomerTotals
    revenue: RevenueFigures | None
    activity: DailyActivity


def build_row(usage: CustomerUsage, catalog: Catalog, refusing: Sequence[RefusingLimit] = ()) -> CustomerRow:
    """The row of a customer.

    Args:
        usage: of this period.
        refusing: limits that refuse the customer now, the longest wait first.
        catalog: what was used of meters that it lacks has no limit any more.
    """
    found, plan = usage["meters"], catalog.find_plan(usage["plan"])
    # Billed overage has a price, of an override too, unless only Stripe has it.
    billed = {name for name, counts in found.items() if "price" in counts}
    if plan is not None:
        overage = {name: of.overage for name, of in plan.entitlements.items()}
        billed |= {name for name, of in overage.items() if of.mode == "bill" and of.amount_cents is None}
    shares = [
        (*_limit_share(found[name], is_gauge=meter.kind == "gauge", is_billed=name in billed), name)
        for name, meter in catalog.meters.items()
        if name in found and _has_limit(found[name])
    ]
    per_mille, used, ceiling, meter = max(shares, default=(0, 0, 0, ""))
    # An empty balance without usage is no news: it was never filled.
    refused = next((limit for limit in refusing if limit.used), None)
    until = None if refused is None else refused.until
    return CustomerRow(
        customer=usage["customer"],
        plan=usage["plan"],
        status=usage["status"] or "",
        access=usage["access"],
        meter=meter,
        refused="" if refused is None else refused.policy,
        used=used,
        ceiling=ceiling,
        per_mille=per_mille,
        unlinked=sum(counts["unlinked"] for counts in found.values()),
        refused_until_ms=0 if refused is None else NO_END_MS if until is None else to_ms(until),
    )


class OverviewTotals:
    """Sums over customers, added one by one.

    Args:
        delivered: the meters that go to Stripe.
    """

    def __init__(self, delivered: Collection[str]) -> None:
        self._delivered = delivered
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in ("plan", "status", "access")}
        self._meters: dict[str, Counter[str]] = {}
        self._customers = self._refused = self._near = self._unlinked = 0

    def add(self, row: CustomerRow, usage: CustomerUsage) -> list[UsageRow]:
        """Add a customer; the rows of its meters with units for Stripe."""
        self._customers += 1
        self._refused += bool(row.refused)
        self._near += row.per_mille >= NEAR_PER_MILLE
        self._unlinked += row.unlinked > 0
        self._counts["plan"][row.plan] += 1
        self._counts["status"][row.status] += 1
        self._counts["access"][row.access] += 1
        found: list[UsageRow] = []
        for name, counts in usage["meters"].items():
            units = {state: counts[state] for state in DELIVERY}
            if any(units.values()) and (name in self._delivered or any(list(units.values())[1:])):
                self._meters.setdefault(name, Counter()).update(units)
                found.append(UsageRow(row.customer, name, **units))
        return found

    def figures(self) -> CustomerTotals:
        """The sums."""
        plans, statuses, accesses = (dict(sorted(counts.items())) for counts in self._counts.values())
        return {
            "customers": self._customers,
            "plans": plans,
            "statuses": statuses,
            "accesses": accesses,
            "refused": self._refused,
            "near": self._near,
            "unlinked": self._unlinked,
            "meters": {
                name: {state: sums[state] for state in DELIVERY}
                for name, sums in sorted(self._meters.items())
            },
        }


def _has_limit(counts: MeterUsage) -> bool:
    return counts["remaining"] != "unlimited" and bool(counts["used"] or counts["remaining"])


def _limit_share(counts: MeterUsage, *, is_gauge: bool, is_billed: bool) -> tuple[int, int, int]:
    used, included = counts["used"], counts["included"]
    left = 0 if counts["remaining"] == "unlimited" else counts["remaining"]
    beyond = counts["over_cap"] + (0 if is_billed else counts["overage"])
    if is_gauge and included != "unlimited":
        beyond = max(0, used - included)
    ceiling = used + left if left else used - beyond
    return used * 1000 // ceiling if ceiling else 1000, used, ceiling
