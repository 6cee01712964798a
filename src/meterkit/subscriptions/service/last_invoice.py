"""Waits until an invoice of now has all that Stripe was sent: what is counted, and not stamped ahead."""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.decisions.periods import first_minute_s, to_ms
from meterkit.stripe.summaries import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["until_billed"]

_logger = logging.getLogger("meterkit.subscriptions")

_MINUTE_S: Final = 60
_AHEAD_S: Final = 240
_SKEW_S: Final = 2
"""How far Stripe's clock may be behind ours."""
_PAUSE_S: Final = 0.5


async def until_billed(
    store: Store, api: StripeApi, customer: str, stripe_customer: str, *, timeout_s: float
) -> bool:
    """Wait until an invoice of now has all that was delivered of a customer in this period; if it does.

    Stripe counts meter events some time after it has accepted them; mostly within seconds
    (https://docs.stripe.com/api/billing/meter-event-summary). After ``timeout_s``, in real seconds, that is
    given up. An invoice has what is stamped before it is made, and what is sealed soon after other usage is
    stamped up to three minutes ahead: that is waited for however long, unless the clock stands still. What is
    given up is logged, with its quantity.

    Raises:
        StoreError: the store does not answer.
        StripeError: Stripe refuses, or does not answer.
    """
    usage = await store.usage(customer)
    sent = {
        meter.stripe.event_name: usage["meters"][name]["delivered"]
        for name, meter in store.catalog.meters.items()
        if meter.stripe is not None and usage["meters"][name]["delivered"]
    }
    if not sent:
        return True
    meters = {
        meter["id"]: sent[meter["event_name"]]
        for meter in await api.list("/v1/billing/meters", {"status": "active"})
        if meter["event_name"] in sent
    }
    start_s = first_minute_s(to_ms(usage["period"]["start"]))
    missing = partial(_missing, api, meters, stripe_customer, start_s)
    deadline = monotonic() + timeout_s
    while left := await missing(_begun_s(store)):
        if not await missing(_begun_s(store) + _AHEAD_S):
            goes_on = await _has_begun(store, _begun_s(store) + _SKEW_S)
        elif goes_on := monotonic() < deadline:
            await anyio.sleep(_PAUSE_S)
        if not goes_on:
            _logger.error(
                "%d units that customer %r has used are delivered, and Stripe has not counted them in time:"
                " they are not on the invoice that ends the subscription",
                *(left, customer),
            )
            return False
    return True


def _begun_s(store: Store) -> int:
    """The end of the last minute whose first second is over at Stripe (Unix seconds)."""
    return ((store.now_ms() // 1000 - _SKEW_S) // _MINUTE_S + 1) * _MINUTE_S


async def _has_begun(store: Store, instant_s: int) -> bool:
    """Wait for an instant by the store's clock; False: that stands still, as a clock in a test does."""
    deadline = monotonic() + instant_s - store.now_ms() / 1000 + 2
    while store.now_ms() < instant_s * 1000:
        if monotonic() >= deadline:
            return False
        await anyio.sleep(_PAUSE_S)
    return True


async def _missing(
    api: StripeApi, sent: Mapping[str, int], stripe_customer: str, start_s: int, end_s: int
) -> int:
    """How much of what was sent to meters Stripe has not counted in a span (Unix seconds)."""
    if end_s <= start_s:  # The first minute of the period has not begun.
        return sum(sent.values())
    missing = 0
    for meter, quantity in sent.items():
        missing += max(0, quantity - int(await counted(api, meter, stripe_customer, start_s, end_s)))
    return missing
