"""The event names of meters, kept in the store: usage outlives its meter's line in the plans file."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.item_prices import prices_by_meter
from meterkit.decisions.keys import meter_token

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin


_logger = logging.getLogger("meterkit.store")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedMeter:
    """A meter that is, or was, delivered to Stripe: its name in the plans file and its event name there."""

    meter: str
    event_name: str


def list_reported_meters(catalog: Catalog) -> dict[str, ReportedMeter]:
    """Of a plans file, by token, the meters that go to Stripe."""
    return {
        meter_token(meter.name): ReportedMeter(meter=meter.name, event_name=meter.stripe.event_name)
        for meter in catalog.meters.values()
        if meter.stripe is not None
    }


async def remember_meters(admin: Admin, keys: Keys, catalog: Catalog) -> None:
    """Have the store remember the meters of this plans file; log those that it knows under another name.

    Raises:
        StoreError: the store does not answer.
    """
    kept = {
        token: json.dumps([counted.meter, counted.event_name], ensure_ascii=False)
        for token, counted in list_reported_meters(catalog).items()
    }
    if not kept:
        return
    with suppress(ValueError, TypeError):  # A damaged entry does not keep a process from starting.
        for former, name, event_name in find_renamed_meters(await _remembered(admin, keys), catalog):
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
    """The former name, name and event name of each new meter that takes over an event. Pure.

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


def read_subscribed_meters(state: CustomerState, catalog: Catalog, now_ms: int) -> dict[str, ReportedMeter]:
    """By token, the meters whose event name the customer's subscription items decide.

    After the plans file gives a meter another event name, present subscriptions bill the earlier one.
    """
    subscription = state.subscription
    if subscription is None:
        return {}
    prices = subscription.prices_at(now_ms) or subscription.prices
    return {
        meter_token(name): ReportedMeter(meter=name, event_name=price.event_name)
        for name, price in prices_by_meter(prices, catalog).items()
        if catalog.meters[name].stripe is not None
    }


def find_former_events(state: CustomerState, catalog: Catalog, since_ms: int) -> dict[str, dict[str, None]]:
    """By event name, the earlier ones of the same meters that the customer's items had since an instant."""
    subscription, found = state.subscription, dict[str, dict[str, None]]()
    if subscription is None:
        return found
    now = prices_by_meter(subscription.prices, catalog)
    for until_ms, prices in subscription.former_prices:
        for name, price in prices_by_meter(prices, catalog).items() if until_ms > since_ms else ():
            event_name = now.get(name, price).event_name
            if event_name != price.event_name:
                found.setdefault(event_name, {})[price.event_name] = None
    return found


async def read_meters(
    admin: Admin, keys: Keys, catalog: Catalog, customer: str | None = None, *, at_ms: int | None = None
) -> Mapping[str, ReportedMeter]:
    """By token, the meters of this plans file, and those that the store remembers of earlier ones.

    Args:
        admin: asks the store.
        keys: of the store.
        catalog: the plans file.
        customer: whose subscription items decide the event names; None: the plans file alone does.
        at_ms: when; None: now.

    Raises:
        StoreError: the store does not answer.
    """
    client = admin.client
    if customer is not None:
        data: bytes | None = await admin.ask(client.hget(keys.customer(customer).state, "data"))
        own = read_subscribed_meters(CustomerState.parse(data or b""), catalog, at_ms or admin.now_ms())
        return {**await read_meters(admin, keys, catalog), **own}
    return {**await _remembered(admin, keys), **list_reported_meters(catalog)}


async def _remembered(admin: Admin, keys: Keys) -> dict[str, ReportedMeter]:
    kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(keys.events))
    found: dict[str, ReportedMeter] = {}
    for token, data in kept.items():
        meter, event_name = json.loads(data)
        found[token.decode()] = ReportedMeter(meter=meter, event_name=event_name)
    return found


async def read_former_meters(
    gone: Sequence[Collection[str]],
    admin: Admin,
    keys: Keys,
    catalog: Catalog,
    *,
    former: bool = False,
) -> list[dict[str, ReportedMeter]]:
    """By token, the meters that are not in this plans file, customer by customer.

    Args:
        gone: their tokens; one that the store does not remember stands for itself.
        admin: asks the store.
        keys: of the store.
        catalog: the plans file.
        former: also all others that the store remembers.

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
