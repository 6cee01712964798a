"""Late usage on a price change: undelivered at Stripe by then, it is billed at the price that ended."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.customers.states import CustomerStates
from meterkit.decisions.compiled_decision import has_flat_price
from meterkit.decisions.customer_state import entitlements_on
from meterkit.decisions.item_prices import NO_PRICES
from meterkit.decisions.keys import meter_token
from meterkit.decisions.periods import MINUTE_MS, from_ms, iso, to_ms
from meterkit.decisions.price_segments import ended_labels, is_same_price, unit_cents
from meterkit.outbox.intents import StoredIntent, compare_in_ms, read_intents_in
from meterkit.outbox.invoice_item_queue import price_each
from meterkit.outbox.operator_commands import change_state
from meterkit.outbox.sealer import LateUsage, add_late_usage
from meterkit.outbox.sealing_terms import (
    deciding_meter,
    format_overage_price,
    is_billed_at,
    item_terms,
    late_class,
    unit_label,
)
from meterkit.store.event_names import list_reported_meters, read_meters, read_subscribed_meters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from meterkit.catalog import Catalog, Entitlement, Meter, Plan
    from meterkit.decisions.customer_state import CustomerState
    from meterkit.store.store import Store

_KEPT_MS: Final = 400 * 86_400_000


def next_minute_ms(now_ms: int) -> int:
    """The first whole minute after an instant: what is stamped with it comes after a change of now."""
    return (now_ms // MINUTE_MS + 1) * MINUTE_MS


async def hold_usage(store: Store, customer: str, *, till_ms: int) -> None:
    """Suspend sealing of a customer's usage of this period until an instant.

    Raises:
        StoreError: the store does not answer.
    """
    await _write_instants(store, customer, {"w": till_ms})


async def release_usage(store: Store, customer: str, *, changed_ms: int) -> None:
    """Resume sealing of held usage, stamped at or after the instant when prices changed.

    Raises:
        StoreError: the store does not answer.
    """
    await _write_instants(store, customer, {"w": 0, "y": changed_ms})


async def _write_instants(store: Store, customer: str, instants: Mapping[str, int]) -> None:
    usage, admin = await store.usage(customer), await store.admin()
    totals, period = store.keys.customer(customer).totals, to_ms(usage["period"]["start"])
    pipe = admin.client.pipeline(transaction=True)
    pipe.hset(totals, mapping={f"{period}|{name}": str(at_ms) for name, at_ms in instants.items()})
    pipe.pexpire(totals, _KEPT_MS)
    await admin.ask(pipe.execute())


_logger = logging.getLogger("meterkit.store")
MISSED: Final = "missed"
"""The field of a parked intent that names the price whose invoice line it can no longer reach."""
_ITEM: Final = "item"
"""The field of such an intent for what an invoice item at that price needs (JSON)."""
_CAUSE: Final = "price change"
_OUTCOMES: Final = (
    "no invoice bills them",
    "the new price bills them",
    "an invoice item bills them at that price",
)
_UNDONE: Final = 3
_BY_ITEM: Final = 2
_WHY: Final = "others changed its price at Stripe: it is compared with Stripe's summary of its minute"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSwitch:
    """A change of prices made at Stripe by others.

    Attributes:
        rev: of the customer's state before it: what has been made late for it is not made late again.
        events: event names of the meters whose prices have changed.
        changed_ms: when they changed, at the latest.
        cause: for the customer's ledger.
    """

    rev: str
    events: Collection[str]
    changed_ms: int
    cause: str


async def mark_usage_late(
    store: Store, customer: str, before: CustomerState, after: CustomerState, switch: PriceSwitch
) -> None:
    """Mark usage late that Stripe did not have when the prices of its meters changed; log how much.

    With ``billing.late_usage: next_period`` an invoice item bills it at the price at which it was recorded.
    If the new price is the same, it is pending again. If no price of a unit is known, no invoice bills it.
    What Stripe may have is parked, and compared with its summaries first.

    Args:
        store: where it is counted.
        customer: whose.
        before: the customer's state before the change.
        after: the state after it.
        switch: the change.

    Raises:
        StoreError: the store does not answer, or what it keeps of the customer is damaged.
    """
    catalog, now_ms = store.catalog.in_currency(after.currency), store.now_ms()
    old, new = (_subscribed_plan(state, catalog, now_ms) for state in (before, after))
    given = None if old is None else entitlements_on(old, before, catalog, now_ms)
    then = None if new is None else entitlements_on(new, after, catalog, now_ms)
    terms = _LateTerms(catalog, given, then, before, after, switch)
    remembered = await read_meters(await store.admin(), store.keys, catalog)
    carried = {**remembered, **read_subscribed_meters(before, catalog, now_ms)}
    by_event = {
        carried[token].event_name: catalog.meters[one.meter]
        for token, one in list_reported_meters(catalog).items()
    }
    meters, items = dict[str, tuple[str, str, str]](), dict[str, dict[str, str]]()
    for token, one in carried.items():
        # Usage may wait under a former name of a meter.
        meter = catalog.meters.get(one.meter) or by_event.get(one.event_name)
        if meter is not None and meter.stripe is not None and one.event_name in switch.events:
            late_class, _, price = terms.of(meter)
            meters[token] = late_class, one.meter, price
            if item := terms.item_of(meter):
                items[token] = {**item, "event": one.event_name}
    missed, since = list[StoredIntent](), Counter[str]()
    pending = set(meters)
    for token, line in (await _list_undelivered(store, customer, meters)).items():
        split = sum(kept.minute_s * 1000 < switch.changed_ms for kept in line)
        # The first one behind the change has what was recorded before it and not sealed by then.
        missed += line[: split + 1]
        since[token] = sum(kept.value for kept in line[split + 1 :])
        if split < len(line):
            pending.discard(token)
    for kept in missed:
        if kept.first_ms:
            token = kept.fields["meter"]
            await _park_intent(store, kept, meters[token][2], items.get(token), switch.cause)
    await _run_mark_late(
        store,
        customer,
        [kept for kept in missed if not kept.first_ms],
        {
            "meters": meters,
            "items": items,
            "back": await _list_undelivered_corrections(store, customer, items),
            "pending": sorted(pending),
            "since": since,
            "labels": {} if given is None or then is None else ended_labels(given, then, catalog),
            "changed": str(next_minute_ms(now_ms)),
            "rev": switch.rev,
            "cause": switch.cause,
        },
    )


def missed_terms(
    state: CustomerState, catalog: Catalog, event_name: str, label: str, *, now_ms: int
) -> dict[str, str] | None:
    """Fields of a parked intent whose units had a price that has ended; see :func:`mark_intent_late`.

    Args:
        state: the customer's.
        catalog: in the customer's currency.
        event_name: of the meter.
        label: of the ended price.
        now_ms: now.

    Returns:
        The fields; None: the subscription does not bill usage.
    """
    terms, subscription = item_terms(state, catalog), state.subscription
    if terms is None or not is_billed_at(subscription, now_ms):
        return None
    item = {**terms, "label": label, "till": f"{now_ms}", "event": event_name}
    is_billed = catalog.billing.late_usage == "next_period"
    price = f" at {price_each(label, terms['currency'])}"
    return {MISSED: price, _ITEM: json.dumps(item) if is_billed else ""}


async def miss_rebuilt(store: Store, customer: str, state: CustomerState, labels: Mapping[str, str]) -> None:
    """Prepare for invoice items what was rebuilt from the audit log, as its price ends: Stripe may lack it.

    Args:
        store: where it is counted.
        customer: whose.
        state: the customer's, before the change.
        labels: of the prices that end, by meter token.

    Raises:
        StoreError: the store does not answer, or what it keeps of the customer is damaged.
    """
    catalog, now_ms = store.catalog.in_currency(state.currency), store.now_ms()
    for token, line in (await _list_undelivered(store, customer, labels)).items():
        for kept in (one for one in line if one.is_rebuilt and unit_cents(labels[token]) is not None):
            event = kept.fields["event"]
            if terms := missed_terms(state, catalog, event, labels[token], now_ms=now_ms):
                wait_ms = compare_in_ms(kept.first_ms, now_ms)
                await change_state(store, kept, "parked", cause=_CAUSE, compare_in_ms=wait_ms, fields=terms)


async def mark_intent_late(store: Store, kept: StoredIntent, *, cause: str) -> bool:
    """Mark an intent late that Stripe does not have, after its price has ended.

    Args:
        store: where it is.
        kept: as it was read.
        cause: for the customer's ledger.

    Returns:
        Whether it was as it was read.

    Raises:
        StoreError: the store does not answer, or what it keeps of the customer is damaged.
    """
    token, now_ms = kept.fields["meter"], store.now_ms()
    _, state = await CustomerStates(store).read(kept.customer)
    catalog = store.catalog.in_currency(state.currency)
    plan, item = _subscribed_plan(state, catalog, now_ms), kept.fields.get(_ITEM, "")
    meter = next((one for name, one in catalog.meters.items() if meter_token(name) == token), None)
    then = None if plan is None else entitlements_on(plan, state, catalog, now_ms)
    again = (
        ("", kept.fields["event"])
        if meter is None
        else (_class_at_new_price(meter, then, catalog), meter.name)
    )
    asked: dict[str, Any] = {
        "pending": [],
        "since": {},
        "labels": {},
        "changed": "",
        "rev": "",
        "cause": cause,
        "items": {token: json.loads(item)} if item else {},
    }
    asked["meters"] = {token: (*again, kept.fields[MISSED])}
    return await _run_mark_late(store, kept.customer, [kept], asked)


async def _run_mark_late(
    store: Store, customer: str, missed: Sequence[StoredIntent], asked: Mapping[str, Any]
) -> bool:
    """Run ``mark_late_usage`` and log the late units; whether any are."""
    keys, admin = store.keys.customer(customer), (await store.admin()).for_delivery()
    names = [keys.counters, keys.totals, keys.history, keys.dirty]
    names += [store.keys.shard(keys.shard, name) for name in ("intents", "outbox", "parked", "compare")]
    names += [store.keys.shard(keys.shard, "items"), *[store.keys.audit(keys.shard)] * store.is_audited]
    intents = [(kept.identifier, kept.text) for kept in missed]
    text = json.dumps({**asked, "intents": intents})
    reply: list[Any] = await admin.run(store.scripts["mark_late_usage"], names, customer, token_hex(16), text)
    late = zip(reply[2::3], reply[3::3], reply[4::3], strict=True)
    for of, value, outcome in late:
        period, _, token = of.decode().partition("|")
        _, name, price = asked["meters"][token]
        if int(outcome) == _UNDONE:
            _logger.error(
                "a correction took back %s units of %s that customer %r used%s, and Stripe did not have it"
                " when the price changed there: they are recorded again; correct them under another id",
                value.decode(),
                name,
                customer,
                price,
            )
            continue
        found = LateUsage(
            customer=customer,
            meter=name,
            quantity=int(value),
            period=iso(from_ms(int(period))),
            is_billed=bool(outcome),
            by_item=outcome == _BY_ITEM,
        )
        _logger.error(
            "%s units of %s that customer %r used%s were not delivered when the price changed at Stripe: they"
            " are late; %s (billing.late_usage)",
            value.decode(),
            name,
            customer,
            price,
            _OUTCOMES[int(outcome)],
            extra=add_late_usage([found]),
        )
    return len(reply) > len(("0", "now"))


async def _list_undelivered(
    store: Store, customer: str, tokens: Iterable[str]
) -> Mapping[str, Sequence[StoredIntent]]:
    """Sealed intents not known to be delivered, by token, in the order of their minutes.

    What a person has parked, or is to look at, stays as it is.
    """
    shard, admin = store.keys.customer(customer).shard, (await store.admin()).for_delivery()
    found: dict[str, list[StoredIntent]] = {token: [] for token in tokens}
    for place in ("outbox", "compare"):
        async for page in read_intents_in(store, admin, shard, place):
            for kept in page:
                token, is_its = kept.fields["meter"], kept.customer == customer and kept.value > 0
                if is_its and token in found and MISSED not in kept.fields:
                    found[token].append(kept)
    return {token: sorted(line, key=lambda kept: kept.minute_s) for token, line in found.items()}


async def _list_undelivered_corrections(
    store: Store, customer: str, tokens: Collection[str]
) -> list[tuple[str, str]]:
    """Find negative events never tried, of meters without parts and prices by model."""
    meters = store.catalog.meters
    with_parts = {meter.source for meter in meters.values()} | {
        name for name, of in meters.items() if of.source
    }
    plain = {token for name in meters if (token := meter_token(name)) in tokens and name not in with_parts}
    shard, admin = store.keys.customer(customer).shard, (await store.admin()).for_delivery()
    return [
        (kept.identifier, kept.text)
        async for page in read_intents_in(store, admin, shard, "outbox")
        for kept in page
        if kept.customer == customer
        and kept.value < 0
        and not kept.first_ms
        and kept.fields["meter"] in plain
    ]


async def _park_intent(
    store: Store, kept: StoredIntent, price: str, item: Mapping[str, str] | None, cause: str
) -> None:
    wait_ms = compare_in_ms(kept.first_ms, store.now_ms())
    more = {"why": _WHY, MISSED: price, _ITEM: "" if item is None else json.dumps(item)}
    await change_state(store, kept, "parked", cause=cause, compare_in_ms=wait_ms, fields=more)


def _subscribed_plan(state: CustomerState, catalog: Catalog, now_ms: int) -> Plan | None:
    subscription = state.subscription
    return None if subscription is None else catalog.find_plan(subscription.plan_at(now_ms))


def _class_at_new_price(meter: Meter, given: Mapping[str, Entitlement] | None, catalog: Catalog) -> str:
    """Class in which late usage of a meter is recorded again; empty: none."""
    if given is None or catalog.billing.late_usage != "next_period":
        return ""
    return late_class(given[deciding_meter(meter.name, catalog)], meter)


class _LateTerms(NamedTuple):
    """Prices of usage that missed a price change.

    Attributes:
        given: what the customer had of each meter; None: no plan of the plans file.
        then: what it has from the switch on; None: no plan of the plans file.
        before: the customer's state before the switch.
        after: the state after it.
    """

    catalog: Catalog
    given: Mapping[str, Entitlement] | None
    then: Mapping[str, Entitlement] | None
    before: CustomerState
    after: CustomerState
    switch: PriceSwitch

    def of(self, meter: Meter) -> tuple[str, str, str]:
        """Class in which a meter's usage is recorded again (empty: none), its name, the ended price."""
        return self._late_class(meter), meter.name, _ended_price(self.given, meter, self.catalog)

    def item_of(self, meter: Meter) -> Mapping[str, str] | None:
        """Terms of an invoice item at the ended price; None: the price is the same, unknown, or in tiers."""
        is_billed = self.catalog.billing.late_usage == "next_period" and self._is_billed(self.before)
        own = None if self.given is None else self.given.get(meter.name)
        if not has_flat_price(own, meter) or self._late_class(meter) or not is_billed:
            return None
        label, terms = self._unit_label(meter, self.before, self.given), item_terms(self.after, self.catalog)
        if unit_cents(label) is None or terms is None or self.before.subscription is None:
            return None
        return {
            **terms,
            "metered": self.before.subscription.metered,
            "label": label,
            "till": f"{self.switch.changed_ms}",
        }

    def _late_class(self, meter: Meter) -> str:
        if self._is_removed(meter):
            return ""
        old, new = (
            self._unit_label(meter, self.before, self.given),
            self._unit_label(meter, self.after, self.then),
        )
        is_free, is_still_free = (not self._is_billed(state) for state in (self.before, self.after))
        is_same = is_still_free if is_free else is_same_price(old, new)
        return _class_at_new_price(meter, self.then, self.catalog) if is_same else ""

    def _is_removed(self, meter: Meter) -> bool:
        """Whether no item of the subscription bills the meter any more, whatever the plans file says."""
        found = self.after.subscription
        if found is None or meter.stripe is None or (found.metered and not found.prices):
            return False
        own = read_subscribed_meters(self.before, self.catalog, self.switch.changed_ms).get(
            meter_token(meter.name)
        )
        events = {meter.stripe.event_name, *([] if own is None else [own.event_name])}
        return events.isdisjoint(price.event_name for price in found.prices)

    def _is_billed(self, state: CustomerState) -> bool:
        return is_billed_at(state.subscription, self.switch.changed_ms)

    def _unit_label(self, meter: Meter, state: CustomerState, given: Mapping[str, Entitlement] | None) -> str:
        prices = NO_PRICES if state.subscription is None else state.subscription.prices
        return unit_label(meter.name, given, prices, self.catalog)[0]


def _ended_price(given: Mapping[str, Entitlement] | None, meter: Meter, catalog: Catalog) -> str:
    """Format the price that ended, to follow a quantity in a message."""
    own = None if given is None else given[deciding_meter(meter.name, catalog)]
    return format_overage_price(own, catalog.currency) or " at a price that the plans file does not name"
