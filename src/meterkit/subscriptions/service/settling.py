"""Waits until Stripe has counted what it was sent: what it has not counted yet, no invoice bills."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio

from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["until_counted"]

_logger = logging.getLogger("meterkit.subscriptions")

_MINUTE_S: Final = 60
_AHEAD_S: Final = 240
_PAUSE_S: Final = 0.5


async def until_counted(
    store: Store, api: StripeApi, customer: str, stripe_customer: str, *, timeout_s: float
) -> bool:
    """Wait until Stripe's summaries show all that was delivered of a customer in this period; if they do.

    Stripe counts meter events some time after it has accepted them; mostly within seconds
    (https://docs.stripe.com/api/billing/meter-event-summary). After ``timeout_s`` it is given up, and logged.

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
        meter["event_name"]: meter["id"]
        for meter in await api.list("/v1/billing/meters", {"status": "active"})
        if meter["event_name"] in sent
    }
    # A minute that something is stamped with lies wholly in the period.
    start_s = -(-to_ms(usage["period"]["start"]) // 1000 // _MINUTE_S) * _MINUTE_S
    end_s = (store.now_ms() // 1000 // _MINUTE_S) * _MINUTE_S + _AHEAD_S
    span: dict[str, str | int] = {"customer": stripe_customer, "start_time": start_s, "end_time": end_s}
    deadline = monotonic() + timeout_s
    while missing := [
        name for name, meter in meters.items() if await _counted(api, meter, span) < sent[name]
    ]:
        if monotonic() >= deadline:
            _logger.warning(
                "Stripe has not counted all usage of customer %r within %s s (%s): what it counts from now"
                " on is not on the last invoice",
                *(customer, timeout_s, ", ".join(missing)),
            )
            return False
        await anyio.sleep(_PAUSE_S)
    return True


async def _counted(api: StripeApi, meter: str, span: Mapping[str, str | int]) -> int:
    found = await api.list(f"/v1/billing/meters/{meter}/event_summaries", span)
    return int(sum(summary["aggregated_value"] for summary in found))
