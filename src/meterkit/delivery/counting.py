"""Wait until Stripe has counted what was delivered of a customer, by its meter event summaries."""

from __future__ import annotations

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

__all__ = ["until_counted"]

_MINUTE_S: Final = 60
_AHEAD_S: Final = 240
_SKEW_S: Final = 2
"""How far Stripe's clock may be behind ours."""
_PAUSE_S: Final = 0.5
_STILL_S: Final = 2.0


async def until_counted(
    store: Store, api: StripeApi, customer: str, stripe_customer: str, *, timeout_s: float
) -> int:
    """Wait until Stripe has counted all that was delivered of a customer in this period; the units it lacks.

    Stripe counts meter events some time after it has accepted them; mostly within seconds
    (https://docs.stripe.com/api/billing/meter-event-summary). After ``timeout_s``, in real seconds, this
    gives up. A price that changes now, and an invoice of now, cover what is stamped before. Usage that is
    sealed soon after other usage may be stamped up to three minutes ahead: this waits for that instant
    without a limit, unless the clock stands still.

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
        return 0
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
            return left
    return 0


def _begun_s(store: Store) -> int:
    """The end of the last minute whose first second is over at Stripe (Unix seconds)."""
    return ((store.now_ms() // 1000 - _SKEW_S) // _MINUTE_S + 1) * _MINUTE_S


async def _has_begun(store: Store, instant_s: int) -> bool:
    """Wait for an instant by the store's clock; False: that stands still, as a clock in a test does."""
    seen_ms, still_since = store.now_ms(), monotonic()
    while (now_ms := store.now_ms()) < instant_s * 1000:
        if now_ms != seen_ms:
            seen_ms, still_since = now_ms, monotonic()
        elif monotonic() >= still_since + _STILL_S:
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
