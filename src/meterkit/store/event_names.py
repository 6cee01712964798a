"""Stripe event names of meters, stored because usage outlives its meter in the plans file."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterkit.decisions.customer_overrides import overridden_label
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import meter_token
from meterkit.decisions.told_terms import terms_of
from meterkit.store.unreadable_data import UNREADABLE
from meterkit.terms.rows import PRICES, ended_values

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.customer_overrides import Overrides
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin


_logger = logging.getLogger("meterkit.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedMeter:
    """A meter that is, or was, reported to Stripe: its name in the plans file and its event name."""

    meter: str
    event_name: str


def list_reported_meters(catalog: Catalog) -> dict[str, ReportedMeter]:
    """Meters of a plans file that are reported to Stripe, by token."""
    return {
        meter_token(meter.name): ReportedMeter(meter=meter.name, event_name=meter.stripe.event_name)
        for meter in catalog.meters.values()
        if meter.stripe is not None
    }


async def remember_meters(admin: Admin, keys: Keys, catalog: Catalog) -> None:
    """Store the meters of this plans file; log those that the store has under another name.

    Raises:
        StoreError: the store does not answer.
    """
    kept = {
        token: json.dumps([counted.meter, counted.event_name], ensure_ascii=False)
        for token, counted in list_reported_meters(catalog).items()
    }
    if not kept:
        return
    for former, name, event_name in find_renamed_meters(await _read_stored(admin, keys), catalog):
        _logger.warning(
            "meter %r sends event %r, which this store has counted as meter %r until now: in the billing"
            " periods that are open customers get the included quantity, cap, grants and rates of %r"
            " beside those of %r; to give nothing twice, keep the key %r in the plans file, and write"
            " `name:` for what customers see",
            *(name, event_name, former, name, former, former),
        )
    await admin.ask(admin.client.hset(keys.events, mapping=kept))


def find_renamed_meters(
    remembered: Mapping[str, ReportedMeter], catalog: Catalog
) -> list[tuple[str, str, str]]:
    """Former name, name and event name of each new meter that takes over an event. Pure.

    Args:
        remembered: meters of earlier plans files, by token.
        catalog: the plans file.
    """
    own = list_reported_meters(catalog)
    former = {
        one.event_name: one.meter
        for token, one in remembered.items()
        if token not in own or own[token].event_name != one.event_name
    }
    return [
        (former[one.event_name], one.meter, one.event_name)
        for token, one in own.items()
        if token not in remembered and one.event_name in former
    ]


def with_former_names(
    labels: Mapping[str, str],
    remembered: Mapping[str, ReportedMeter],
    catalog: Catalog,
    overrides: Overrides,
) -> dict[str, str]:
    """Labels of prices that end, also by the former names of their meters: usage may wait under these. Pure.

    Args:
        labels: by token.
        remembered: meters of earlier plans files, by token.
        catalog: the plans file.
        overrides: of the customer, which have the former names.
    """
    own = list_reported_meters(catalog)
    by_event = {one.event_name: labels[token] for token, one in own.items() if token in labels}
    former = {
        token: overridden_label(overrides, one.meter) or by_event[one.event_name]
        for token, one in remembered.items()
        if token not in own and one.event_name in by_event
    }
    return {**former, **labels}


def read_subscribed_meters(state: CustomerState, catalog: Catalog, now_ms: int) -> dict[str, ReportedMeter]:
    """Meters with the event names of the customer's subscription items, by token.

    After the plans file gives a meter another event name, existing subscriptions bill the earlier one.
    """
    subscription = state.subscription
    if subscription is None:
        return {}
    prices = state.prices_at(now_ms) or subscription.prices
    return {
        meter_token(name): ReportedMeter(meter=name, event_name=price.event_name)
        for name, price in prices_by_meter(prices, catalog).items()
        if catalog.meters[name].stripe is not None
    }


def find_former_events(state: CustomerState, catalog: Catalog, since_ms: int) -> dict[str, dict[str, None]]:
    """Earlier event names of the same meters in the customer's items since an instant, by event name."""
    subscription, found = state.subscription, dict[str, dict[str, None]]()
    if subscription is None:
        return found
    now = prices_by_meter(subscription.prices, catalog)
    for until_ms, prices in ended_values(state.terms, PRICES):
        for name, price in prices_by_meter(prices, catalog).items() if until_ms > since_ms else ():
            event_name = now.get(name, price).event_name
            if event_name != price.event_name:
                found.setdefault(event_name, {})[price.event_name] = None
    return found


def find_ended_events(
    state: CustomerState, catalog: Catalog, now_ms: int
) -> list[tuple[int, dict[str, str]]]:
    """Event names of the customer's items that have ended: until when, by token; oldest first.

    Usage of a period that has ended goes to Stripe under the event names of its end.
    """
    found = list[tuple[int, dict[str, str]]]()
    ended = ended_values(terms_of(state, catalog, now_ms), PRICES)
    now = read_subscribed_meters(state, catalog, now_ms) if ended else {}
    for until_ms, _ in ended:
        then = read_subscribed_meters(state, catalog, until_ms - 1)
        others = {token: one.event_name for token, one in then.items() if one != now.get(token, one)}
        if others:
            found.append((until_ms, others))
    return found


async def read_meters(
    admin: Admin, keys: Keys, catalog: Catalog, customer: str | None = None, *, at_ms: int | None = None
) -> Mapping[str, ReportedMeter]:
    """Meters of this plans file and of earlier ones in the store, by token.

    Args:
        admin: asks the store.
        keys: of the store.
        catalog: the plans file.
        customer: customer with the subscription items that have the event names; None: those of the file.
        at_ms: time of the items; None: now.

    Raises:
        StoreError: the store does not answer.
    """
    client = admin.client
    if customer is not None:
        data: bytes | None = await admin.ask(client.hget(keys.customer(customer).state, "data"))
        own = read_subscribed_meters(CustomerState.parse(data or b""), catalog, at_ms or admin.now_ms())
        return {**await read_meters(admin, keys, catalog), **own}
    return {**await _read_stored(admin, keys), **list_reported_meters(catalog)}


async def _read_stored(admin: Admin, keys: Keys) -> dict[str, ReportedMeter]:
    kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(keys.events))
    found: dict[str, ReportedMeter] = {}
    for token, data in kept.items():
        try:
            meter, event_name = json.loads(data)
            found[token.decode()] = ReportedMeter(meter=str(meter), event_name=str(event_name))
        except UNREADABLE:
            admin.warn_once(
                f"what is stored of meter {token!r:.80} cannot be read and is left out; only meters that the"
                " plans file no longer has need it"
            )
    return found


async def read_former_meters(
    gone: Sequence[Collection[str]],
    admin: Admin,
    keys: Keys,
    catalog: Catalog,
    *,
    former: bool = False,
) -> list[dict[str, ReportedMeter]]:
    """Meters that are not in this plans file, by token, customer by customer.

    Args:
        gone: tokens of each customer; a token that the store does not have is its own name.
        admin: asks the store.
        keys: of the store.
        catalog: the plans file.
        former: include all others in the store.

    Raises:
        StoreError: the store does not answer.
    """
    if not former and not any(gone):
        return [{} for _ in gone]
    known = await read_meters(admin, keys, catalog)
    more = {token: one for token, one in known.items() if former and one.meter not in catalog.meters}
    return [
        more | {token: known.get(token) or ReportedMeter(meter=token, event_name="") for token in tokens}
        for tokens in gone
    ]
