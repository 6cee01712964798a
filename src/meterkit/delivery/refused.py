"""Usage that Stripe has accepted and does not count: what its error reports name is parked or dead."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.delivery.error_reports import identifiers_of, read_report, state_of
from meterkit.delivery.refused_batches import blamed
from meterkit.errors import MeterkitError
from meterkit.store.refusing import Refusing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.delivery.error_reports import ErrorReport
    from meterkit.store.journal import Journal
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

__all__ = ["take_refusals"]

_logger = logging.getLogger("meterkit.delivery")

_CURES: Final = {
    "archived_meter": "reactivate the meter at Stripe",
    "no_meter": "make a meter of that event name at Stripe: meterkit stripe sync",
    "meter_event_customer_not_found": (
        "link the customer to one of this account for what comes, meterkit customers unlink and link; what"
        " was sent stays addressed to the old one: bill it by hand"
    ),
}
_CURE: Final = "meterkit doctor compares the meters at Stripe with the plans file"


async def take_refusals(store: Store, api: StripeApi, event_id: str, journal: Journal | None = None) -> None:
    """Fetch what an event tells of meter events that Stripe does not count, and do with each what it says.

    An intent that it names, by itself or by the call that it was sent in, is parked or dead, with Stripe's
    words, and counted so. Stripe names only some of the events: how many are left, and what to do, is logged.
    Repeated, it does nothing again.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
        MeterkitError: an intent is just being sent; it is to be tried again.
    """
    report = read_report(await api.get(f"/v2/core/events/{event_id}"))
    refusing = Refusing(store)
    named = await blamed(api, refusing, report) | identifiers_of(report)
    found = await refusing.find(named)
    apart, sending, done = 0, list[str](), list[str]()
    for identifier, one in found.items():
        code, message = named[identifier]
        if one.is_apart:
            apart += 1
            continue
        state, why = state_of(code), f"refused after it was taken: {code}: {message}"
        refused = await refusing.refuse(one, state=state, why=why)
        if refused == "done":
            apart += 1
            done.append(identifier)
            _logger.error(
                "%d units of %s of customer %r are %s: Stripe took intent %s and does not count it: %s: %s",
                *(one.value, one.event_name, one.customer, state, identifier, code, message),
            )
        elif refused == "sending":
            sending.append(identifier)
    if done and journal is not None:
        await _remove(journal, done)
    if sending:
        raise MeterkitError(f"intents that Stripe refuses are being sent: {', '.join(sending[:3])}")
    _tell_rest(report, apart, event_id)


async def _remove(journal: Journal, identifiers: Sequence[str]) -> None:
    """Take off the journal what Stripe does not have. A row that stays makes a restore bill too little."""
    try:
        await journal.remove(identifiers)
    except MeterkitError as error:
        _logger.warning(
            "the journal of deliveries still has intents that Stripe refuses: %s: %s",
            *(", ".join(identifiers[:3]), error),
        )


def _tell_rest(report: ErrorReport, apart: int, event_id: str) -> None:
    left = report.count - apart
    if left <= 0:
        return
    kinds = ", ".join(f"{cause.code} ({cause.count})" for cause in report.causes) or "for no reason given"
    cures = dict.fromkeys(_CURES.get(cause.code, _CURE) for cause in report.causes) or {_CURE: None}
    where = "" if report.meter is None else f" of meter {report.meter}"
    when = f" from {report.span}" if report.span else ""
    _logger.error(
        "%d of %d meter events%s%s that Stripe has taken and does not count are not known here by name: %s;"
        " they count as delivered, so meterkit shows more than the invoice will. To do: %s. Event %s",
        *(left, report.count, where, when, kinds, "; ".join(cures), event_id),
    )
