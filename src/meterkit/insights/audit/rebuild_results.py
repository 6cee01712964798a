"""Results of a rebuild from the audit log: what the counters lack, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.decisions.periods import MINUTE_MS, from_ms
from meterkit.insights.audit.entries import NOTHING_UNSENT, RECORDED, UnsentUnits
from meterkit.store.customer_usage import BILLED_STATES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from fractions import Fraction

    from meterkit.store.customer_usage import CustomerUsage

    Units = Mapping[str, int]

    """Of a meter, by class."""

_TO_BE_LINKED: Final = (
    "it goes to Stripe and the customer is not linked: `meterkit customers link`, then rebuild again"
)
_TO_BE_NAMED: Final = (
    "it goes to Stripe and its event name is not known: start a process with the plans file that had this"
    " meter, then rebuild again"
)
_TO_BE_COMPARED: Final = (
    "Stripe may have the parked units: they are compared with Stripe's summaries after two hours, by"
    " a process that delivers or by `meterkit reconcile --repair`"
)
_OF_GRANTS: Final = (
    "grants or credits paid for some of it, and what they have left is not rebuilt: add them again by their"
    " ids (`meterkit grants list`)"
)
_IS_OVER: Final = "the period is over, and is not rebuilt: "
_SKEW_MS: Final = 2_000
"""An intent's minute has begun at most so long before it is sealed; see ``next_free_minute.lua``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildResult:
    """A customer, meter and period that the audit log has more of than the counters, in the meter's unit.

    Attributes:
        meter: empty: nothing could be done for the customer, and ``advice`` says why.
        period_start: of the billing period; None: nothing could be done for the customer.
        recorded: what the counters had.
        audited: what the audit log has.
        raised: how many units are recorded now that were not; with ``dry_run`` those that would be.
        delivered: how many of those that go to Stripe it has, by its own summaries.
        parked: how many of those it may have.
        advice: what to do; empty: nothing.
        is_done: whether nothing is left to be done here.
    """

    customer: str
    meter: str
    period_start: datetime | None
    recorded: int = 0
    audited: int = 0
    raised: int = 0
    delivered: int = 0
    parked: int = 0
    advice: str
    is_done: bool


def describe_rebuilt(
    usage: CustomerUsage, sums: Mapping[str, Units], meter: str, units: Sequence[int], *, is_named: bool
) -> RebuildResult:
    """The missing units of a meter in its period, ``units`` as in rebuild_counters.lua.

    ``is_named``: whether its event name is known.
    """
    *classes, _, delivered, parked, left = units
    _, granted, credited, *_ = classes
    advices = (
        (_TO_BE_LINKED if is_named else _TO_BE_NAMED) if left else _TO_BE_COMPARED if parked else "",
        _OF_GRANTS if granted + credited and not left else "",
    )
    return RebuildResult(
        customer=usage["customer"],
        meter=meter,
        period_start=usage["period"]["start"],
        recorded=_count_recorded(usage, meter),
        audited=_count_audited(sums[meter]),
        raised=0 if left else sum(classes),
        delivered=delivered,
        parked=parked,
        advice="; ".join(filter(None, advices)),
        is_done=not left,
    )


class MissingUnits(NamedTuple):
    """Missing units of a meter in the books of an ended period.

    Attributes:
        recorded: units that were recorded.
        reported: units that were to go to Stripe and are nowhere on the way there.
    """

    recorded: int
    reported: int


def find_missing_units(
    usage: CustomerUsage, meter: str, units: Units, unsent: UnsentUnits = NOTHING_UNSENT
) -> MissingUnits:
    """Compare the usage of an ended period with the audit log.

    ``unsent``: units that no meter event bills; the books may have forgotten them.
    """
    counts: Mapping[str, Any] = usage["meters"].get(meter) or {}
    known = sum(counts.get(place, 0) for place in BILLED_STATES)
    known += max(counts.get("late", 0), unsent.late + unsent.by_item)
    known += max(counts.get("dead", 0), unsent.dropped)
    recorded = _count_audited(units) - counts.get("recorded", 0)
    return MissingUnits(max(0, recorded), max(0, units["reported"] - known))


def describe_past_period(
    usage: CustomerUsage,
    start_ms: int,
    meter: str,
    units: Units,
    lacks: MissingUnits,
    *,
    unknown: int | None,
    is_long_over: bool,
) -> RebuildResult:
    """A meter of a past period with more units in the log than in the books: the difference.

    ``unknown``: what Stripe has of its event name that the books do not know of; None: it was not asked.
    """
    delivered = min(lacks.reported, unknown or 0)
    unbilled = lacks.reported - delivered
    if not lacks.reported:
        advice = "nothing that is missing was to be billed"
    elif not unbilled:
        advice = "Stripe has all of it that was to be billed"
    elif unknown is None:
        advice = f"compare the {lacks.reported} units that were to be billed with its invoice"
    else:
        advice = f"Stripe lacks {unbilled} units that were to be billed: bill them by an invoice item"
    return RebuildResult(
        customer=usage["customer"],
        meter=meter,
        period_start=from_ms(start_ms),
        recorded=_count_audited(units) - lacks.recorded,
        audited=_count_audited(units),
        delivered=delivered,
        advice=_IS_OVER + advice,
        is_done=not unbilled or is_long_over,
    )


def describe_unknown_periods(
    usage: CustomerUsage, sums: Mapping[int, Mapping[str, Units]]
) -> list[RebuildResult]:
    """Units recorded in a period that the store does not know, because it lost the customer."""
    start = usage["period"]["start"]
    advice = (
        f"its period begins {start:%Y-%m-%dT%H:%MZ} by the store: have its subscription or plan known again"
        " first (`meterkit customers show`), then rebuild"
    )
    return [
        RebuildResult(
            customer=usage["customer"],
            meter=meter,
            period_start=from_ms(period_ms),
            audited=_count_audited(units),
            advice=advice,
            is_done=False,
        )
        for period_ms, meters in sums.items()
        for meter, units in meters.items()
        if any(units.values())
    ]


def describe_skipped(customer: str, why: str) -> RebuildResult:
    """A customer for whom nothing could be done."""
    return RebuildResult(
        customer=customer,
        meter="",
        period_start=None,
        advice=f"nothing is rebuilt of this customer: {why}",
        is_done=False,
    )


def _count_recorded(usage: CustomerUsage, meter: str) -> int:
    found = usage["meters"].get(meter)
    return 0 if found is None else found["recorded"]


def _count_audited(units: Units) -> int:
    return sum(units[name] for name in RECORDED)


class LoggedPrice(NamedTuple):
    """A price of a meter in a period, by the audit log.

    Attributes:
        of_unit: the price of one unit, in micro-units of the currency.
        units: how many units had it.
        since_ms: when the first of them was recorded.
        last_ms: when the last was.
    """

    of_unit: Fraction
    units: int
    since_ms: int
    last_ms: int

    @property
    def first_minute_ms(self) -> int:
        """First minute that an event of these units can have."""
        return (self.since_ms - _SKEW_MS) // MINUTE_MS * MINUTE_MS


def find_cheaper_units(
    sold: Sequence[LoggedPrice], now: Fraction, *, by_item: int, before: int
) -> dict[Fraction, int]:
    """Find units that Stripe may lack at prices below that of now, by price, the cheapest first.

    Which units it lacks is known only as far as usage at the price of now has later timestamps: in doubt,
    they are the cheapest.

    Args:
        sold: prices of the period, by the log.
        now: the price of now, in micro-units of the currency.
        by_item: units that invoice items bill at prices that ended.
        before: units that Stripe has with timestamps before those at the price of now.
    """
    ended = [one for one in sold if one.of_unit != now and one.units > 0]
    open_since_ms = min((one.since_ms for one in sold if one.of_unit == now), default=None)
    # A price that is back may have had some of the items.
    is_back = open_since_ms is not None and any(one.last_ms > open_since_ms for one in ended)
    left = sum(one.units for one in ended) - before - (0 if is_back else by_item)
    found: dict[Fraction, int] = {}
    for one in sorted(ended):
        if one.of_unit < now and left > 0:
            found[one.of_unit] = min(left, one.units)
            left -= found[one.of_unit]
    return found
