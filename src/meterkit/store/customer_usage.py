"""Usage of a customer, from the stored counters. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NotRequired, TypedDict

from meterkit.catalog import OTHER_TYPE
from meterkit.catalog.value_parsers import rounded_cents
from meterkit.decisions.customer_overrides import overridden_label
from meterkit.decisions.customer_state import CustomerState, bounds_of, entitlements_of, overrides_in_force
from meterkit.decisions.free_usage import is_usage_free_of
from meterkit.decisions.gauges import GaugeLimit, StoredLevel, presigned_bytes_at
from meterkit.decisions.grants import MICRO, PrepaidPlans, prepaid_of, target_of
from meterkit.decisions.item_prices import FixedPrice, prices_by_meter
from meterkit.decisions.keys import HEAD_FIELD, credit_hold_field, meter_token
from meterkit.decisions.limit_policies import ceiling_of
from meterkit.decisions.packed import CounterHead, MeterCounts, byte_fields, text_fields
from meterkit.decisions.periods import from_ms
from meterkit.decisions.plan_shares import effective_terms
from meterkit.decisions.price_segments import (
    is_split,
    overage_cents,
    segments_of,
    sent_label,
    sent_segments,
    shown_label,
    unit_cents,
)
from meterkit.decisions.stored_grants import GrantBalance, read_funds, rolled_over
from meterkit.decisions.subscription_periods import is_provisional
from meterkit.redis.store_clock import CLOCK_JITTER_MS
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


class UsageReply(NamedTuple):
    """The reply of the usage script.

    Attributes:
        now_ms: the store's clock.
        rev: of the state.
        state: as it is stored.
        counters, totals, levels: hashes, each as a flat list of fields and values.
        funds: what grants come to, see ``read_funds.lua``; empty: not asked for.
        ledger: of the grants, as a flat list; empty: not asked for.
    """

    now_ms: int
    rev: bytes
    state: bytes
    counters: list[bytes]
    totals: list[bytes]
    levels: list[bytes]
    funds: list[list[bytes]]
    ledger: list[bytes]


class OveragePrice(TypedDict):
    """Price of overage: ``per`` units cost ``amount_cents`` in minor units of ``currency``.

    It is the price of the customer's subscription item. With ``estimated``, which is then true, no such price
    is known, and it is that of the plans file.
    """

    per: int
    amount_cents: int
    currency: str
    interval: str
    estimated: NotRequired[bool]


def overage_find_price(
    entitlement: Entitlement, own: ItemPrice | None, catalog: Catalog, interval: str
) -> OveragePrice | None:
    """Price of a meter's overage; None: it is not billed, or only Stripe has its price.

    Args:
        entitlement: of the meter.
        own: price of the customer's subscription item; None: unknown.
        catalog: has the currency, and says whether Stripe's items have prices of usage.
        interval: of the price.
    """
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if entitlement.overage.mode != "bill" or per is None or amount_cents is None:
        return None
    found: OveragePrice = {
        "per": per,
        "amount_cents": amount_cents,
        "currency": catalog.currency,
        "interval": interval,
    }
    is_known = catalog.billing.is_by_lines or (own is not None and own.is_exact)
    return found if is_known else {**found, "estimated": True}


def _paid_interval(subscription: SubscriptionState | None, now_ms: int) -> str | None:
    """Interval of the customer's own price, such as ``3 months``; None: not known."""
    per = None if subscription is None else subscription.interval_at(now_ms)
    if subscription is None or per is None:
        return None
    base = FixedPrice.parse(subscription.base_price)
    return per if base is None else base.interval


def price_cents(overage: int, entitlement: Entitlement) -> int | None:
    """Cost of overage in minor units, rounded half up."""
    per, amount_cents = entitlement.overage.per, entitlement.overage.amount_cents
    if per is None or amount_cents is None:
        return None
    return rounded_cents(Fraction(overage * amount_cents, per))


class PeriodUsage(TypedDict):
    """The billing period; ``start`` is its first instant, ``end`` the first one after it (UTC).

    ``provisional``: it was computed from the subscription's anchor, as no renewal is known yet.
    """

    id: str
    start: datetime
    end: datetime
    provisional: bool


class DeliveryCounts(TypedDict):
    """Usage of one meter in this period, by its state on the way to Stripe."""

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

    ``used`` is recorded + held; a gauge records its level. ``granted`` are the units that grants of the meter
    have paid for and have left. ``overage_cents`` is the cost of the overage so far, each unit at the
    customer's price when it was recorded, rounded half up for each price as on an invoice line; None without
    a known price; for a derived meter and its source, the cost of the units under the event of each.
    ``price``: only for meters whose overage is billed at a known price. ``over_cap`` are units beyond the
    plan's cap, which are recorded, but are neither overage nor billed. ``types``: only for the gauge of
    ``storage:``, its bytes by type. The parts from ``pending`` on add up to the recorded units that go to
    Stripe.
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
    """Count the recorded units of a meter that go to Stripe."""
    on_their_way = counts["pending"] + counts["unlinked"] + counts["queued"] + counts["leased"]
    return on_their_way + counts["parked"] + counts["delivered"] + counts["late"] + counts["dead"]


class CustomerUsage(TypedDict):
    """Usage of a customer in this period.

    ``currency`` is that of all amounts. ``addons`` are those in force beside the plan, with their quantities.
    ``rolled_over`` is the part of the balance that was left of earlier periods' grants.
    """

    customer: str
    plan: str
    status: Status | None
    access: Access
    currency: str
    addons: dict[str, int]
    period: PeriodUsage
    features: list[str]
    balance: dict[str, int]
    balance_micros: dict[str, int]
    rolled_over: dict[str, int]
    meters: dict[str, MeterUsage]


_DELIVERY_STATES: Final = frozenset(DeliveryCounts.__annotations__)
BILLED_STATES: Final = ("pending", "unlinked", "queued", "leased", "parked", "delivered")
"""Of units that Stripe has or is to get for this period: late and dead ones are neither."""


def hide_delivery_states(usage: CustomerUsage) -> CustomerUsage:
    """Copy a usage without the delivery states of its meters, which concern operators."""
    meters: Any = {
        name: {key: count for key, count in counts.items() if key not in _DELIVERY_STATES}
        for name, counts in usage["meters"].items()
    }
    return {**usage, "meters": meters}


def find_gone_tokens(catalog: Catalog, reply: UsageReply) -> set[str]:
    """Find the tokens of meters with usage to deliver that are not in this plans file."""
    totals, counters = text_fields(reply.totals), byte_fields(reply.counters)
    tokens = {name[-5:-1] for name, value in totals.items() if _TO_DELIVER.search(name) and value != "0"}
    for name, packed in counters.items():
        if _OF_METER.search(name) and MeterCounts.read(packed).pending:
            tokens.add(name[:-1])
    return tokens - {meter_token(name) for name in catalog.meters}


def funds_terms(catalog: Catalog, reply: UsageReply) -> tuple[str | int, ...] | None:
    """Arguments with which the script tells what a customer's grants come to; None: it can have none."""
    state = CustomerState.parse(reply.state)
    effective = effective_terms(state, catalog, reply.now_ms)
    rev, bounds = reply.rev.decode(), effective.bounds
    prepaid = prepaid_of(rev, state, effective, PrepaidPlans(catalog))
    if prepaid is None:
        return None
    return rev, prepaid.packed_grants(), bounds.start_ms, bounds.end_ms, bounds.next_end_ms


def read_usage_reply(
    customer: str,
    catalog: Catalog,
    reply: UsageReply,
    gone: Mapping[str, ReportedMeter] = _NONE,
    *,
    at_ms: int | None = None,
) -> CustomerUsage:
    """Read the reply of the usage script.

    Ended holds and periods that no script has closed yet count as closed. ``gone``: former meters by token.
    ``at_ms``: an instant of the period; what a past period included is unknown, and 0 of it remains.
    """
    now_ms, rev, data, counters, totals, levels, *_ = reply
    state = CustomerState.parse(data)
    effective = effective_terms(state, catalog, now_ms)
    prepaid = prepaid_of(rev.decode(), state, effective, PrepaidPlans(catalog))
    catalog, linked = catalog.in_currency(effective.currency), state.stripe_customer is not None
    funds, bounds = read_funds(reply.funds), effective.bounds
    balance = GrantBalance(funds.held, prepaid, now_ms, funds.owed)
    counted, kept = byte_fields(counters), text_fields(totals)
    view = CountsView(counted, kept, now_ms, bounds.start_ms, bounds.end_ms, balance)
    is_past = at_ms is not None and view.go_back(at_ms, bounds_of(state, effective.counting, at_ms))
    entitlements, filled = entitlements_of(effective, catalog), byte_fields(levels)
    micros_left = {name: balance.of(target_of("credit", name)) for name in catalog.credits}
    subscription, rolled = state.subscription, rolled_over(funds.held, effective.allowance, now_ms)
    interval = _paid_interval(subscription, now_ms) or effective.plan.price.interval
    own = prices_by_meter(effective.prices, catalog)
    is_usage_free = is_usage_free_of(state, view.start_ms, view.end_ms)

    def of_meter(name: str) -> MeterUsage:
        if is_past:
            return _read_counts(meter_token(name), view, linked=linked)
        if catalog.meters[name].kind == "gauge":
            keeps = effective.keeps_limits
            return _read_gauge(entitlements[name], view, filled, catalog.storage, keeps=keeps)
        rows = _read_rows(name, entitlements, view, catalog.meters, own)
        rows |= _read_former_rows(name, gone, view, effective.prices)
        meter = _read_counter(name, entitlements, view, catalog.meters, rows, linked=linked)
        if is_usage_free and meter["overage_cents"] is not None:
            meter["overage_cents"] = 0
        price = overage_find_price(entitlements[name], own.get(name), catalog, interval)
        return meter if price is None else {**meter, "price": price}

    def of_former_meter(token: str, one: ReportedMeter) -> MeterUsage:
        given = overridden_label(overrides_in_force(state, now_ms), one.meter)
        label = "" if is_past or is_usage_free else given or _find_label(one, effective.prices)
        return _read_former_meter(token, label, view, linked=linked)

    return {
        "customer": customer,
        "plan": effective.plan.key,
        "status": effective.status,
        "access": effective.access,
        "currency": effective.currency,
        "addons": dict(effective.plan.bought),
        "period": _build_period(view, subscription),
        "features": sorted(effective.plan.features),
        "balance": {name: micros // MICRO for name, micros in micros_left.items()},
        "balance_micros": micros_left,
        "rolled_over": {name: rolled[target_of("credit", name)] // MICRO for name in catalog.credits},
        "meters": {
            **{name: of_meter(name) for name in catalog.meters},
            **{one.meter: of_former_meter(token, one) for token, one in gone.items()},
        },
    }


def _build_period(view: CountsView, subscription: SubscriptionState | None) -> PeriodUsage:
    return {
        "id": from_ms(view.start_ms).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "start": from_ms(view.start_ms),
        "end": from_ms(view.end_ms),
        "provisional": subscription is not None and is_provisional(subscription, view.start_ms),
    }


def _read_counter(
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
    where, stranded = _read_counts(token, view, linked=linked), view.delivery(token, "t")
    segments = _price_segments(token, shown_label(entitlement, meters[name]), view, stranded)
    if rows and len(segments) == 1:  # The file may have got or lost prices by model since the period began.
        elsewhere = sum(view.counted(row).overage for row in rows)
        segments = [segments[0].outside_rows(counts.overage, elsewhere)]
    if is_split(name, meters):
        label, items = sent_label(name, entitlements, meters), view.marks(token, "n")
        label = view.marks(token, "Y") or label
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
        "remaining": _compute_remaining(entitlement, counts.included, counts.overage, held, more),
        "overage_cents": overage_cents([*segments, *chain.from_iterable(rows.values())]),
    }


def _price_segments(token: str, label: str, view: CountsView, stranded: int = 0) -> list[PriceSegment]:
    """Price segments of a meter, without late units of others: these are recorded twice, and billed once."""
    overage = view.counted(token).overage - stranded
    label = view.marks(token, "Y") or label
    return segments_of(view.marks(token), label=label, sealed=0, overage=overage)


def _read_rows(
    source: str,
    entitlements: Mapping[str, Entitlement],
    view: CountsView,
    meters: Mapping[str, Meter],
    own: Mapping[str, ItemPrice],
) -> dict[str, Sequence[PriceSegment]]:
    """Price segments with overage of each price row by model, by token."""
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


def _read_former_rows(
    source: str, gone: Mapping[str, ReportedMeter], view: CountsView, prices: ItemPrices
) -> Mapping[str, Sequence[PriceSegment]]:
    """Price segments of price rows by model that are no longer in the plans file."""
    return {
        token: [one for one in _price_segments(token, label, view) if one.overage]
        for token, counted in gone.items()
        if counted.meter.startswith(f"{source}:") and (label := _find_label(counted, prices))
    }


def _find_label(counted: ReportedMeter, prices: ItemPrices) -> str:
    """Label of the price of the item with the event name of a meter; empty: there is none."""
    named = (one for one in prices if one.event_name == counted.event_name and one.is_exact)
    return next((one.label for one in named), "")


def _read_gauge(
    entitlement: Entitlement,
    view: CountsView,
    levels: Mapping[str, bytes],
    storage: Storage | None,
    *,
    keeps: bool,
) -> MeterUsage:
    """Usage of a gauge, which records its level and is not reported to Stripe."""
    name, limit = entitlement.meter, GaugeLimit.of(entitlement, keeps=keeps)
    level, token = StoredLevel.read(levels.get(name)), meter_token(name)
    held = view.held(token) + presigned_bytes_at(levels.get(f"{name}+"), view.now_ms)
    used = level.level + held
    found: MeterUsage = {
        **_read_counts(token, view, linked=True),
        "held": held,
        "used": used,
        "recorded": level.level,
        "included": "unlimited" if limit is None else limit.included,
        "remaining": "unlimited" if limit is None else max(0, limit.at(level, view.now_ms) - used),
    }
    if storage is not None and storage.gauge == name:
        found["types"] = _read_types(storage, levels)
    return found


def _read_types(storage: Storage, levels: Mapping[str, bytes]) -> dict[str, int]:
    """Bytes of the storage gauge, by type."""
    first = f"{storage.gauge}:"
    kept = {name.removeprefix(first) for name in levels if name.startswith(first)} - {""}
    known = (*storage.types, OTHER_TYPE)
    return {
        name: StoredLevel.read(levels.get(first + name)).level for name in (*known, *sorted(kept - {*known}))
    }


def _read_counts(token: str, view: CountsView, *, linked: bool) -> MeterUsage:
    """Counts of a meter: all that is known of one that is no longer in the plans file."""
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


def _read_former_meter(token: str, label: str, view: CountsView, *, linked: bool) -> MeterUsage:
    """Usage of a meter no longer in the plans file, at a price; without a label it is not known."""
    found = _read_counts(token, view, linked=linked)
    if not label:
        return found
    return {**found, "overage_cents": overage_cents(_price_segments(token, label, view))}


def _compute_remaining(
    entitlement: Entitlement, covered: int, overage: int, held: int, more: int
) -> int | Unlimited:
    ceiling = ceiling_of(entitlement)
    if ceiling is None or entitlement.included is None:
        return "unlimited"
    left = max(0, entitlement.included - covered) + more - held
    if entitlement.overage.mode == "bill":
        left += max(0, ceiling - entitlement.included - overage)
    return max(0, left)


# Stored counts.

_PERIOD_MIN_MS: Final = 120_000  # Deliveries of a period need two different minutes.
# Class of usage by the name of its total in a closed period; see close_period.lua.
_CLOSED: Final = {
    "i": "included",
    "g": "granted",
    "c": "credited",
    "o": "overage",
    "j": "over_cap",
    "p": "pending",
}


class CountsView:
    """Stored counts, advanced to now without writing."""

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
        # Like close_period.lua: counters of a period with the same end continue in this one.
        is_another = ends != end_ms and start_ms >= began + _PERIOD_MIN_MS
        self._over = now_ms >= ends or is_another
        if began >= end_ms and not self._over:
            end_ms = ends  # Like confirm_view.lua: a period that has begun goes on if the clock goes back.
        if is_another:
            stamped_ms = max(
                (self._stored(name[:-1]).stamped_ms for name in counters if name.endswith("m")), default=0
            )
            ends = min(ends, max(start_ms, stamped_ms + _PERIOD_MIN_MS))
        self.start_ms = max(start_ms, ends) if self._over else began
        self.end_ms = end_ms
        # Like confirm_view.lua: time stands still for a customer while the clock is back by a moment.
        self.now_ms = head.seen_ms if 0 <= head.seen_ms - now_ms <= CLOCK_JITTER_MS else now_ms

    def go_back(self, at_ms: int, grid: Bounds) -> bool:
        """Show the period of an instant; whether it is a past one.

        Args:
            at_ms: the instant.
            grid: its period by the subscription, used if nothing was recorded in it.
        """
        if self.start_ms <= at_ms < self.end_ms:
            return False
        head = CounterHead.read(self._counters.get(HEAD_FIELD))
        spans = {int(name[:-2]): int(end) for name, end in self._totals.items() if name.endswith("|e")}
        if self._over and head.ends_ms:
            # No script has closed it yet. A change of the subscription may have cut it short.
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
        """Counts of a meter in this period."""
        if self._is_past and not self._is_open:
            return MeterCounts(**{name: self.delivery(token, kind) for kind, name in _CLOSED.items()})
        if self._over and not self._is_past:
            return MeterCounts()
        return self._stored(token)

    def held(self, token: str) -> int:
        """Quantity of live holds."""
        return 0 if self._is_past else self._stored(token).held_at(self.now_ms)

    def held_credit(self, meter: str) -> int:
        """Cost of a meter's live holds at the prices of their models, in micro-credits."""
        if self._is_past:
            return 0
        return MeterCounts.read(self._counters.get(credit_hold_field(meter))).held_at(self.now_ms)

    def _stored(self, token: str) -> MeterCounts:
        return MeterCounts.read(self._counters.get(f"{token}m"))

    def marks(self, token: str, kind: str = "s") -> str:
        """Ended price segments of this period.

        Kind ``n``: units billed by invoice items; ``Y``: label of the price of the latest units.
        """
        return self._totals.get(f"{self.start_ms}|{token}{kind}", "")

    def delivery(self, token: str, kind: str) -> int:
        """Sealed usage of this period in a delivery state, less its corrections."""
        kept, field = self._totals, f"{self.start_ms}|{token}"
        back = 0 if kind.isupper() else int(kept.get(f"{field}{kind.upper()}", 0))
        return int(kept.get(f"{field}{kind}", 0)) - back
