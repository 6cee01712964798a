"""What a customer has used, from what the store keeps. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NotRequired, TypedDict

from meterkit.catalog import OTHER_TYPE
from meterkit.catalog.amount_texts import rounded_cents
from meterkit.decisions.customer_state import CustomerState, bounds_of, entitlements_of
from meterkit.decisions.gauges import GaugeLimit, StoredLevel, presigned_bytes_at
from meterkit.decisions.grants import MICRO, prepaid_by_plan, prepaid_of, target_of
from meterkit.decisions.item_prices import NO_PRICES, prices_by_meter
from meterkit.decisions.keys import HEAD_FIELD, credit_hold_field, meter_token
from meterkit.decisions.packed import CounterHead, MeterCounts, byte_fields, text_fields
from meterkit.decisions.periods import from_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.policies import ceiling_of
from meterkit.decisions.price_segments import (
    is_split,
    overage_cents,
    segments_of,
    sent_label,
    sent_segments,
    shown_label,
    unit_cents,
)
from meterkit.decisions.stored_grants import GrantBalance, read_funds
from meterkit.decisions.subscription_periods import is_provisional
from meterkit.store.event_names import ReportedMeter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from meterkit.catalog import Catalog, Entitlement, Meter, Storage
    from meterkit.decisions.item_prices import ItemPrice, ItemPrices
    from meterkit.decisions.periods import Bounds
    from meterkit.decisions.price_segments import PriceSegment
    from meterkit.decisions.subscription import Access, Status, SubscriptionState

# Totals: by the class at the close of a period (close_period.lua), by state once sealed (count_field.lua).
_TO_DELIVER: Final = re.compile(r"\|....[apqlkxQLKX]$")
_OF_METER: Final = re.compile(r"^....m$")
_NONE: Final = MappingProxyType(dict[str, ReportedMeter]())

Unlimited = Literal["unlimited"]
UsageReply = tuple[int, bytes, bytes, list[bytes], list[bytes], list[bytes], list[bytes]]


class PeriodUsage(TypedDict):
    """The billing period; ``start`` is its first instant, ``end`` the first one after it (UTC).

    ``provisional``: it was computed from the subscription's anchor, as no renewal is known yet.
    """

    id: str
    start: datetime
    end: datetime
    provisional: bool


class DeliveryCounts(TypedDict):
    """Where the usage of one meter in this period is, on its way to Stripe."""

    pending: int
    unlinked: int
    queued: int
    leased: int
    parked: int
    delivered: int
    late: int
    dead: int


class MeterUsage(DeliveryCounts):
    """One meter in this period, in its unit.

    ``used`` is recorded + held; a gauge records its level; ``granted`` is the part that grants of the
    meter have paid for and have left; ``overage_cents`` is the cost of the overage so far, each unit by the
    customer's price when it was recorded, rounded half up for each price as on an invoice line, None where no
    price is known (of a derived meter and its source the cost of what Stripe gets under the event of each);
    ``price`` is there for meters whose overage is billed at a known price;
    ``over_cap`` are units beyond the plan's cap, which are recorded, are no overage, and are not billed;
    ``types`` is there for the gauge of ``storage:`` alone: its bytes by type;
    the parts from ``pending`` on add up to what was recorded and goes to Stripe.
    """

    used: int
    included: int | Unlimited
    granted: int
    held: int
    remaining: int | Unlimited
    overage: int
    overage_cents: int | None
    price: NotRequired[OveragePrice]
    over_cap: int
    recorded: int
    types: NotRequired[dict[str, int]]


def count_reported(counts: DeliveryCounts) -> int:
    """The units of a meter that were recorded and go to Stripe."""
    on_their_way = counts["pending"] + counts["unlinked"] + counts["queued"] + counts["leased"]
    return on_their_way + counts["parked"] + counts["delivered"] + counts["late"] + counts["dead"]


class CustomerUsage(TypedDict):
    """All that a customer has used in this period."""

    customer: str
    plan: str
    status: Status | None
    access: Access
    period: PeriodUsage
    features: list[str]
    balance: dict[str, int]
    balance_micros: dict[str, int]
    meters: dict[str, MeterUsage]


def find_gone_tokens(catalog: Catalog, reply: UsageReply) -> set[str]:
    """What stands for meters that have usage to deliver and are not in this plans file."""
    totals, counters = text_fields(reply[4]), byte_fields(reply[3])
    tokens = {name[-5:-1] for name, value in totals.items() if _TO_DELIVER.search(name) and value != "0"}
    for name, packed in counters.items():
        if _OF_METER.search(name) and MeterCounts.read(packed).pending:
            tokens.add(name[:-1])
    return tokens - {meter_token(name) for name in catalog.meters}


def read_usage_reply(
    customer: str,
    catalog: Catalog,
    reply: UsageReply,
    gone: Mapping[str, ReportedMeter] = _NONE,
    *,
    at_ms: int | None = None,
) -> CustomerUsage:
    """Read the reply of the usage script, ``[now, rev, state, counters, totals, grants, levels]``.

    Holds and periods that are over but that no script has rolled yet count as rolled. ``gone``: meters
    that are not in this plans file any more, by what stands for them. ``at_ms``: of the period that this
    instant lies in; the included quantity of a past one is unknown, and 0 of it remains.
    """
    now_ms, rev, data, counters, totals, grants, levels = reply
    state = CustomerState.parse(data)
    effective = effective_terms(state, catalog, now_ms)
    prepaid = prepaid_of(rev.decode(), state, effective, prepaid_by_plan(catalog))
    known = {} if prepaid is None else text_fields(grants)
    funds = read_funds(known, prepaid, effective.bounds, now_ms)
    balance = GrantBalance(funds.held, prepaid, now_ms, funds.owed)
    bounds = effective.bounds
    counted, kept = byte_fields(counters), text_fields(totals)
    view = CountsView(counted, kept, now_ms, bounds.start_ms, bounds.end_ms, balance)
    is_past = at_ms is not None and view.go_back(at_ms, bounds_of(state, effective.counting, at_ms))
    entitlements = entitlements_of(effective, catalog)
    filled = byte_fields(levels)
    micros_left = {name: balance.of(target_of("credit", name)) for name in catalog.credits}
    linked, subscription = state.stripe_customer is not None, state.subscription
    paid_per = None if subscription is None else subscription.interval_at(now_ms)
    interval, own = paid_per or effective.plan.price.interval, prices_by_meter(effective.prices, catalog)
    is_usage_free = subscription is not None and subscription.is_usage_free_of(view.start_ms)

    def of_meter(name: str) -> MeterUsage:
        if is_past:
            return _counts_of(meter_token(name), view, linked=linked)
        if catalog.meters[name].kind == "gauge":
            level = StoredLevel.read(filled.get(name))
            presigned = presigned_bytes_at(filled.get(f"{name}+"), view.now_ms)
            keeps = effective.keeps_limits
            found = _gauge(entitlements[name], view, level, presigned, keeps=keeps)
            if catalog.storage is not None and catalog.storage.gauge == name:
                found["types"] = _types(catalog.storage, filled)
            return found
        rows = _rows_of(name, entitlements, view, catalog.meters, own)
        rows |= _former_rows(name, gone, view, effective.prices)
        meter = _meter(name, entitlements, view, catalog.meters, rows, linked=linked)
        if is_usage_free and meter["overage_cents"] is not None:
            meter["overage_cents"] = 0
        price = overage_price_of(entitlements[name], own.get(name), catalog.currency, interval)
        return meter if price is None else {**meter, "price": price}

    priced = NO_PRICES if is_past or is_usage_free else effective.prices
    return {
        "customer": customer,
        "plan": effective.plan.key,
        "status": effective.status,
        "access": effective.access,
        "period": _period_of(view, subscription),
        "features": sorted(effective.plan.features),
        "balance": {name: micros // MICRO for name, micros in micros_left.items()},
        "balance_micros": micros_left,
        "meters": {
            **{name: of_meter(name) for name in catalog.meters},
            **{
                one.meter: _former_meter(token, one, view, priced, linked=linked)
                for token, one in gone.items()
            },
        },
    }


def _period_of(view: CountsView, subscription: SubscriptionState | None) -> PeriodUsage:
    return {
        "id": from_ms(view.start_ms).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "start": from_ms(view.start_ms),
        "end": from_ms(view.end_ms),
        "provisional": subscription is not None and is_provisional(subscription, view.start_ms),
    }


def _meter(
    name: str,
    entitlements: Mapping[str, Entitlement],
    view: CountsView,
    meters: Mapping[str, Meter],
    rows: Mapping[str, Sequence[PriceSegment]],
    *,
    linked: bool,
) -> MeterUsage:
    entitlement, token = entitlements[name], meter_token(name)
    counts, held = view.counted(token), view.held(token)
    where, stranded = _counts_of(token, view, linked=linked), view.delivery(token, "t")
    segments = _price_segments(token, shown_label(entitlement, meters[name]), view, stranded)
    if rows and len(segments) == 1:  # The file may have got or lost prices by model since the period began.
        elsewhere = sum(view.counted(row).overage for row in rows)
        segments = [segments[0].outside_rows(counts.overage, elsewhere)]
    if is_split(name, meters):
        label, items = sent_label(name, entitlements, meters), view.marks(token, "n")
        segments = sent_segments(view.marks(token), items, label=label, sent=count_reported(where) - stranded)
    more = view.balance.units_beyond_plan(
        name,
        entitlements,
        counted=lambda other: view.counted(meter_token(other)).included,
        held=lambda other: view.held(meter_token(other)),
        held_credit=view.held_credit,
    )
    return {
        **where,
        "included": "unlimited" if entitlement.included is None else entitlement.included,
        "granted": counts.granted + view.balance.of(target_of("meter", name)),
        "remaining": _remaining(entitlement, counts.included, counts.overage, held, more),
        "overage_cents": overage_cents([*segments, *chain.from_iterable(rows.values())]),
    }


def _price_segments(token: str, label: str, view: CountsView, stranded: int = 0) -> list[PriceSegment]:
    """The price segments of a meter, less what others made late: that is recorded twice, and billed once."""
    overage = view.counted(token).overage - stranded
    return segments_of(view.marks(token), label=label, sealed=0, overage=overage)


def _rows_of(
    source: str,
    entitlements: Mapping[str, Entitlement],
    view: CountsView,
    meters: Mapping[str, Meter],
    own: Mapping[str, ItemPrice],
) -> dict[str, Sequence[PriceSegment]]:
    """The price segments with overage of each meter that counts a price by model, by token."""
    found: dict[str, Sequence[PriceSegment]] = {}
    for name, meter in meters.items():
        if meter.is_row and meter.source == source:
            token, label = meter_token(name), shown_label(entitlements[name], meter)
            if unit_cents(label) is None and name in own and own[name].is_exact:
                label = own[name].label  # The plans file has prices by model in other plans only.
            # Units under the source's event have the default price.
            stranded = view.delivery(token if meter.stripe is not None else meter_token(source), "t")
            found[token] = [one for one in _price_segments(token, label, view, stranded) if one.overage]
    return found


def _former_rows(
    source: str, gone: Mapping[str, ReportedMeter], view: CountsView, prices: ItemPrices
) -> Mapping[str, Sequence[PriceSegment]]:
    """Find the same of prices by model that the plans file has no longer."""
    return {
        token: [one for one in _price_segments(token, price.label, view) if one.overage]
        for token, counted in gone.items()
        if counted.meter.startswith(f"{source}:") and (price := _price_of(counted, prices)) is not None
    }


def _price_of(counted: ReportedMeter, prices: ItemPrices) -> ItemPrice | None:
    return next((one for one in prices if one.event_name == counted.event_name and one.is_exact), None)


def _gauge(
    entitlement: Entitlement, view: CountsView, level: StoredLevel, presigned: int, *, keeps: bool
) -> MeterUsage:
    """A gauge: it records its level, and is not reported to Stripe."""
    token, limit = meter_token(entitlement.meter), GaugeLimit.of(entitlement, keeps=keeps)
    held = view.held(token) + presigned
    used = level.level + held
    return {
        **_counts_of(token, view, linked=True),
        "held": held,
        "used": used,
        "recorded": level.level,
        "included": "unlimited" if limit is None else limit.included,
        "remaining": "unlimited" if limit is None else max(0, limit.at(level, view.now_ms) - used),
    }


def _types(storage: Storage, levels: Mapping[str, bytes]) -> dict[str, int]:
    """How much of the gauge each type fills."""
    first = f"{storage.gauge}:"
    kept = {name.removeprefix(first) for name in levels if name.startswith(first)} - {""}
    known = (*storage.types, OTHER_TYPE)
    return {
        name: StoredLevel.read(levels.get(first + name)).level for name in (*known, *sorted(kept - {*known}))
    }


def _counts_of(token: str, view: CountsView, *, linked: bool) -> MeterUsage:
    """The counts of a meter; only these are known if the plans file has the meter no longer."""
    counts, held = view.counted(token), view.held(token)
    return {
        "used": counts.recorded + held,
        "included": 0,
        "granted": counts.granted,
        "held": held,
        "remaining": 0,
        "overage": counts.overage,
        "overage_cents": None,
        "over_cap": counts.over_cap,
        "recorded": counts.recorded,
        "pending": counts.pending if linked else 0,
        "unlinked": 0 if linked else counts.pending,
        "queued": view.delivery(token, "q"),
        "leased": view.delivery(token, "l"),
        "parked": view.delivery(token, "k"),
        "delivered": view.delivery(token, "d") - view.delivery(token, "b"),
        "late": sum(view.delivery(token, kind) for kind in "utbaf"),
        "dead": view.delivery(token, "x") + view.delivery(token, "z"),  # Dropped intents count as dead.
    }


def _former_meter(
    token: str, one: ReportedMeter, view: CountsView, prices: ItemPrices, *, linked: bool
) -> MeterUsage:
    """A meter that the plans file has no longer, at the price of the item that bills its event name."""
    found, price = _counts_of(token, view, linked=linked), _price_of(one, prices)
    if price is None:
        return found
    return {**found, "overage_cents": overage_cents(_price_segments(token, price.label, view))}


def _remaining(entitlement: Entitlement, covered: int, overage: int, held: int, more: int) -> int | Unlimited:
    ceiling = ceiling_of(entitlement)
    if ceiling is None or entitlement.included is None:
        return "unlimited"
    left = max(0, entitlement.included - covered) + more - held
    if entitlement.overage.mode == "bill":
        left += max(0, ceiling - entitlement.included - overage)
    return max(0, left)


_PERIOD_LEAST_MS: Final = 120_000  # A shorter one has no two whole minutes to stamp deliveries with.
# Names of totals of a closed period by the class that its usage was in; see close_period.lua.
_CLOSED: Final = {
    "i": "included",
    "g": "granted",
    "c": "credited",
    "o": "overage",
    "j": "over_cap",
    "p": "pending",
}


class CountsView:
    """The stored counts, brought forward to now without writing."""

    def __init__(
        self,
        counters: dict[str, bytes],
        totals: dict[str, str],
        now_ms: int,
        start_ms: int,
        end_ms: int,
        balance: GrantBalance,
    ) -> None:
        self.balance = balance
        self._is_past = self._is_open = False
        self._counters = counters
        self._totals = totals
        head = CounterHead.read(counters.get(HEAD_FIELD))
        began, ends = head.begins_ms, head.ends_ms
        # As scripts do (close_period.lua): counters of a period that ends when this one does go on in it.
        is_another = ends != end_ms and start_ms >= began + _PERIOD_LEAST_MS
        self._over = now_ms >= ends or is_another
        if is_another:
            stamped_ms = max(
                (self._stored(name[:-1]).stamped_ms for name in counters if name.endswith("m")), default=0
            )
            ends = min(ends, max(start_ms, stamped_ms + _PERIOD_LEAST_MS))
        self.start_ms = max(start_ms, ends) if self._over else began
        self.end_ms = end_ms
        # Clocks go back; a customer's time does not.
        self.now_ms = max(now_ms, head.seen_ms)

    def go_back(self, at_ms: int, grid: Bounds) -> bool:
        """Show the period that an instant lies in; whether that is one that is over.

        Args:
            at_ms: the instant.
            grid: its period by the subscription, for one in which nothing was recorded.
        """
        if self.start_ms <= at_ms < self.end_ms:
            return False
        head = CounterHead.read(self._counters.get(HEAD_FIELD))
        spans = {int(name[:-2]): int(end) for name, end in self._totals.items() if name.endswith("|e")}
        if self._over and head.ends_ms:
            # No script has closed it yet. Another subscription, or none, may have cut it short.
            spans[head.begins_ms] = min(head.ends_ms, self.start_ms)
            self._is_open = head.begins_ms <= at_ms < spans[head.begins_ms]
        found = [start for start, end in spans.items() if start <= at_ms < end]
        if found:
            self.start_ms, self.end_ms = found[0], spans[found[0]]
        else:
            before = [end for end in (*spans.values(), self.end_ms) if end <= at_ms]
            after = [start for start in (*spans, self.start_ms) if start > at_ms]
            self.start_ms, self.end_ms = max([grid.start_ms, *before]), min([grid.end_ms, *after])
        self._is_past = True
        return True

    def counted(self, token: str) -> MeterCounts:
        """The counts of a meter in this period."""
        if self._is_past and not self._is_open:
            return MeterCounts(**{name: self.delivery(token, kind) for kind, name in _CLOSED.items()})
        if self._over and not self._is_past:
            return MeterCounts()
        return self._stored(token)

    def held(self, token: str) -> int:
        """What live holds hold."""
        return 0 if self._is_past else self._stored(token).held_at(self.now_ms)

    def held_credit(self, meter: str) -> int:
        """What live holds of a meter would cost at the prices of their models, in micro-credits."""
        if self._is_past:
            return 0
        return MeterCounts.read(self._counters.get(credit_hold_field(meter))).held_at(self.now_ms)

    def _stored(self, token: str) -> MeterCounts:
        return MeterCounts.read(self._counters.get(f"{token}m"))

    def marks(self, token: str, kind: str = "s") -> str:
        """The price segments of this period that have ended; of kind ``n`` what invoice items bill."""
        return self._totals.get(f"{self.start_ms}|{token}{kind}", "")

    def delivery(self, token: str, kind: str) -> int:
        """What became of this period's usage after it was sealed, less what is taken back in that state."""
        kept, field = self._totals, f"{self.start_ms}|{token}"
        back = 0 if kind.isupper() else int(kept.get(f"{field}{kind.upper()}", 0))
        return int(kept.get(f"{field}{kind}", 0)) - back


class OveragePrice(TypedDict):
    """The price of overage: ``per`` units cost ``amount_cents`` in minor units of ``currency``.

    It is the price of the customer's own subscription item. ``estimated`` is there, and true, where no such
    price is known: then it is that of the plans file.
    """

    per: int
    amount_cents: int
    currency: str
    interval: str
    estimated: NotRequired[bool]


def overage_price_of(
    entitlement: Entitlement, own: ItemPrice | None, currency: str, interval: str
) -> OveragePrice | None:
    """The price of a meter's overage; None: it is not billed, or its price is only at Stripe.

    Args:
        entitlement: of the meter.
        own: the price of the customer's subscription item for it; None: not known.
        currency: of the plans file.
        interval: that the price is for.
    """
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if entitlement.overage.mode != "bill" or per is None or amount_cents is None:
        return None
    found: OveragePrice = {
        "per": per,
        "amount_cents": amount_cents,
        "currency": currency,
        "interval": interval,
    }
    return found if own is not None and own.is_exact else {**found, "estimated": True}


def price_cents(overage: int, entitlement: Entitlement) -> int | None:
    """What overage costs in minor units: exact until here, rounded half up."""
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if per is None or amount_cents is None:
        return None
    return rounded_cents(Fraction(overage * amount_cents, per))
