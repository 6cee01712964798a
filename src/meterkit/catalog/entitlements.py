"""What a plan gives for one meter, and its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.meters import counts_bytes
from meterkit.catalog.models import Entitlement, Overage
from meterkit.catalog.rates import Rates
from meterkit.catalog.scalars import (
    UNLIMITED,
    Unlimited,
    cents,
    duration,
    integer,
    is_size,
    or_unlimited,
    percent,
    quantity,
)
from meterkit.catalog.shapes import Choice, Forms, Key, ListOf, Shape, Table, Values

if TYPE_CHECKING:
    from meterkit.catalog.models import Meter
    from meterkit.catalog.report import Problems

CAP: Final = Key(
    "cap", quantity(), "The quantity beyond included that is still admitted; default: no ceiling."
)
PER: Final = Key("per", quantity(least=1), "The quantity that amount_cents buys.")
AMOUNT_CENTS: Final = Key("amount_cents", cents(), "The price of `per` units in minor units.")
BILL_TABLE: Final = Table("a price of overage", (CAP, PER, AMOUNT_CENTS), inheritable=True)
BILL: Final = Key("bill", BILL_TABLE, "Overage is admitted and billed.")
_TOLERANCE: Final = "gauges hold nothing, so that there is nothing to tolerate"
PERCENT: Final = Key(
    "percent",
    percent(least=1, most=1000),
    "How far above included a gauge may be.",
    without_effect=_TOLERANCE,
)
GRACE: Final = Key("grace", duration(least=1), "For how long.", without_effect=_TOLERANCE)
OVERAGE_TABLE: Final = Table("overage", (BILL, PERCENT, GRACE), inheritable=True)

_OVERAGE_MAPS: Final = ", a map {bill: {cap, per, amount_cents}} or a map {percent, grace}"
OVERAGE_ALLOWED: Final = f"deny, bill{_OVERAGE_MAPS}"

RATE: Final = Key("rate", Rates(), "Quantity per window: one rate, several, or unlimited (default).")
CONCURRENCY: Final[Key[int | Unlimited]] = Key(
    "concurrency", or_unlimited(integer(least=1)), "Requests in flight; default: unlimited."
)
INCLUDED: Final[Key[int | Unlimited]] = Key(
    "included", or_unlimited(quantity()), "Quantity per billing period that the price covers."
)
_OVERAGE_SHAPE: Final[Shape[str | Values]] = Forms(
    OVERAGE_ALLOWED, scalar=Choice(("deny", "bill"), others=_OVERAGE_MAPS), fields=OVERAGE_TABLE
)
OVERAGE: Final = Key(
    "overage",
    _OVERAGE_SHAPE,
    "What happens beyond included: deny (default where something is included), bill, or a tolerance.",
)
WARN_AT: Final = Key(
    "warn_at",
    ListOf(percent(least=1, most=1000), "percentages"),
    "Percentages of included to warn at.",
    without_effect="nobody is warned",
)
ENTITLEMENT_TABLE: Final = Table(
    "an entitlement", (RATE, CONCURRENCY, INCLUDED, OVERAGE, WARN_AT), inheritable=True
)

DENY: Final = Overage(mode="deny")
BILLED: Final = Overage(mode="bill")


def default_entitlement(meter: Meter) -> Entitlement:
    """What a plan gives that does not list the meter: no ceiling; billed where Stripe has an event for it."""
    is_billed = meter.stripe is not None and meter.source is None
    return Entitlement(
        meter=meter.name,
        rates=(),
        concurrency=None,
        included=0 if is_billed else None,
        overage=BILLED if is_billed else DENY,
        warn_at=(),
    )


def build_entitlement(
    values: Values, meter: Meter, problems: Problems, *, base: Entitlement | None = None
) -> Entitlement:
    """What a plan gives that lists the meter; what is not said is as ``base`` has it, if there is one."""
    if meter.kind == "gauge":
        _refuse_on_gauge(values, meter, problems)
    if not counts_bytes(meter):
        _refuse_sizes(values, meter, problems)
    start = base or default_entitlement(meter)
    if values.has(INCLUDED):
        included = _limit_of(values.get(INCLUDED))
    else:
        included = 0 if base is None and values.get(OVERAGE) is not None else start.included
    return Entitlement(
        meter=meter.name,
        rates=values.get(RATE, ()) if values.has(RATE) else start.rates,
        concurrency=_limit_of(values.get(CONCURRENCY)) if values.has(CONCURRENCY) else start.concurrency,
        included=included,
        overage=_build_overage(values, meter, base, problems),
        warn_at=_build_warn_at(values, problems) if values.has(WARN_AT) else start.warn_at,
    )


def _limit_of(written: int | Unlimited | None) -> int | None:
    return None if written == UNLIMITED else written


def ceiling(entitlement: Entitlement) -> int | None:
    """The quantity per period, or the level, beyond which only grants and credits admit; None: no ceiling."""
    included, overage = entitlement.included, entitlement.overage
    if included is None:
        return None
    match overage.mode:
        case "deny":
            return included
        case "bill":
            return None if overage.cap is None else included + overage.cap
        case "percent":
            return included * (100 + (overage.percent or 0)) // 100


def _refuse_on_gauge(values: Values, meter: Meter, problems: Problems) -> None:
    if values.get(RATE):
        message = f"{meter.name} is a gauge: it has a level, not a rate; remove `rate`"
        problems.refuse(values.place(RATE), message)
    if isinstance(values.get(CONCURRENCY), int):
        message = f"{meter.name} is a gauge: concurrency counts requests; put it on a counter"
        problems.refuse(values.place(CONCURRENCY), message)


def _refuse_sizes(values: Values, meter: Meter, problems: Problems) -> None:
    overage = values.get(OVERAGE)
    bill = overage.get(BILL) if isinstance(overage, Values) else None
    for table, key in ((values, INCLUDED), (bill, CAP), (bill, PER)):
        written = table.text(key) if table else None
        if table and written and is_size(written) and table.get(key) is not None:
            message = (
                f"found the size {written!r}, but {meter.name} counts {meter.unit}; allowed: a whole number"
            )
            problems.refuse(table.place(key), message)


def _build_overage(values: Values, meter: Meter, base: Entitlement | None, problems: Problems) -> Overage:
    written = values.get(OVERAGE)
    if written is None:
        if base is not None:
            return base.overage
        return DENY if values.has(INCLUDED) or values.has(OVERAGE) else default_entitlement(meter).overage
    if isinstance(written, Values):
        overage = _build_overage_table(written, meter, problems)
    else:
        overage = BILLED if written == "bill" else DENY
    if overage.mode == "bill" and meter.stripe is None:
        cure = (
            "deny it" if meter.kind == "gauge" else "add `stripe: {event_name: …}` to the meter, or deny it"
        )
        message = f"{meter.name} has no Stripe event, so its overage cannot be billed; {cure}"
        problems.refuse(values.place(OVERAGE), message)
    elif overage.mode != "bill" and not values.has(INCLUDED) and (base is None or base.included is None):
        message = (
            "overage is what is beyond included, and `included` is missing; add it, `included: 0` for none"
        )
        problems.refuse(values.place(OVERAGE), message)
    return overage


def _build_overage_table(written: Values, meter: Meter, problems: Problems) -> Overage:
    place = written.node.place
    has_tolerance = written.has(PERCENT) or written.has(GRACE)
    if written.has(BILL) and not has_tolerance:
        return _build_bill(written.get(BILL), problems)
    if written.has(BILL):
        problems.refuse(place, f"found both `bill` and a tolerance; allowed: {OVERAGE_ALLOWED}")
        return DENY
    if not (written.has(PERCENT) and written.has(GRACE)):
        problems.refuse(place, f"a tolerance needs `percent` and `grace`; allowed: {OVERAGE_ALLOWED}")
    elif meter.kind != "gauge":
        message = f"{meter.name} is a counter, and percent and grace are for gauges; use deny or bill"
        problems.refuse(place, message)
    return Overage(mode="percent", percent=written.get(PERCENT), grace_ms=written.get(GRACE))


def _build_bill(bill: Values | None, problems: Problems) -> Overage:
    if bill is None:
        return DENY
    for given, needed in ((PER, AMOUNT_CENTS), (AMOUNT_CENTS, PER)):
        if bill.has(given) and not bill.has(needed):
            message = f"`{given.name}` needs `{needed.name}`: so much money per so many units"
            problems.refuse(bill.place(given), message)
    return Overage(mode="bill", **bill.given(CAP, PER, AMOUNT_CENTS))


def _build_warn_at(values: Values, problems: Problems) -> tuple[int, ...]:
    warn_at = values.get(WARN_AT, ())
    if len(set(warn_at)) < len(warn_at):
        problems.refuse(values.place(WARN_AT), "a percentage is listed twice; keep one")
    return tuple(sorted(set(warn_at)))
