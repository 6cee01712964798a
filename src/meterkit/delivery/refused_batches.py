"""What Stripe names by the idempotency key of a call with several intents: which of them are to blame."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.delivery.error_reports import batches_of, is_of_meter
from meterkit.errors import StripeError

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.delivery.error_reports import Cause, ErrorReport
    from meterkit.store.refusing import Refusable, Refusing
    from meterkit.stripe.api import StripeApi

__all__ = ["blamed"]

_logger = logging.getLogger("meterkit.delivery")

_NO_CUSTOMER: Final = "meter_event_customer_not_found"


async def blamed(api: StripeApi, refusing: Refusing, report: ErrorReport) -> dict[str, tuple[str, str]]:
    """The intents that a report means by naming batches: identifier to the code and Stripe's words.

    ``request.identifier`` of a sample is "The request idempotency key", as Stripe's SDKs document
    ``V1BillingMeterErrorReportTriggeredEvent``: of a stream that is one for up to a hundred events. Of those
    that are of the report's meter it means the only one; all, where the meter takes nothing and no fewer are
    counted; those whose customer is not at Stripe, where it says so. Else nobody can tell: that is logged,
    with their identifiers.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    batches = batches_of(report)
    if not batches:
        return {}
    events = await _event_names(api, report)
    intents = await refusing.batches({key for keys in batches.values() for key in keys})
    found: dict[str, tuple[str, str]] = {}
    for cause, keys in batches.items():
        words = {identifier: message for key, message in keys.items() for identifier in intents.get(key, ())}
        known = await refusing.find(words)
        one_of = [one for one in known.values() if (one.event_name in events) != (report.meter is None)]
        for one in await _meant(api, cause, one_of):
            found[one.identifier] = (cause.code, words[one.identifier])
    return found


async def _event_names(api: StripeApi, report: ErrorReport) -> Collection[str]:
    """The event name of the report's meter; where it is of none, those of all meters that there are."""
    if report.meter is not None:
        return {(await api.get(f"/v1/billing/meters/{report.meter}"))["event_name"]}
    return {meter["event_name"] for meter in await api.list("/v1/billing/meters")}


async def _meant(api: StripeApi, cause: Cause, one_of: list[Refusable]) -> list[Refusable]:
    if len(one_of) == 1 or (is_of_meter(cause.code) and cause.count >= len(one_of)):
        return one_of
    if cause.code == _NO_CUSTOMER:
        gone = {name for name in {one.stripe_customer for one in one_of} if await _is_gone(api, name)}
        return [one for one in one_of if one.stripe_customer in gone]
    if one_of:
        _logger.error(
            "Stripe refuses %d of these intents, which were sent in one call, and does not say which: %s: %s",
            *(cause.count, cause.code, ", ".join(one.identifier for one in one_of)),
        )
    return []


async def _is_gone(api: StripeApi, stripe_customer: str) -> bool:
    try:
        return bool((await api.get(f"/v1/customers/{stripe_customer}")).get("deleted"))
    except StripeError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return True
