"""The currency that Stripe bills a customer in, and that of a new subscription.

Stripe bills a customer's subscriptions in one currency at a time
(https://docs.stripe.com/invoicing/multi-currency-customers). It would take another one after a cancellation;
meterkit does not, as balances, credit notes and unpaid invoices stay in the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.decisions.subscription import ENDED
from meterkit.errors import CurrencyError, MeterkitError
from meterkit.subscriptions.stripe_objects import TOP_UP, part_of, same_error, text_in
from meterkit.subscriptions.subscription_reading import has_begun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.stripe.api import StripeApi


def has_live_subscription(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of a Stripe customer's subscriptions has not ended: it has the customer's currency."""
    return any(one.get("status") not in ENDED for one in found)


def billed_currency(
    found: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any],
    chosen: Mapping[str, Any] | None = None,
) -> str:
    """The currency that Stripe bills a customer in, in lower case; empty: none yet.

    A sign-up that ended before anything was paid leaves none.

    Args:
        found: all subscriptions of the Stripe customer, newest first, with ``latest_invoice`` expanded.
        shown: the Stripe customer; empty: it was not read.
        chosen: the subscription in effect; None: not known, or there is none.
    """
    live = [one for one in found if one.get("status") not in ENDED]
    if live:
        is_live = chosen is not None and chosen.get("status") not in ENDED
        return text_in(chosen if chosen is not None and is_live else live[0], "currency").lower()
    ended = [one for one in found if has_begun(one)]
    unpaid = {text_in(one, "currency") for one in found if one not in ended}
    own = text_in(shown, "currency")
    if own and own not in unpaid:
        return own.lower()
    return next((text_in(one, "currency").lower() for one in ended), "")


def may_be_of_top_ups(currency: str, catalog: Catalog) -> bool:
    """Whether a Stripe customer may have its currency only from top-ups, which may be sold no more."""
    return currency == BALANCE_CURRENCY and any(one.is_money for one in catalog.credits.values())


async def read_billed_currency(
    api: StripeApi,
    catalog: Catalog,
    found: Sequence[Mapping[str, Any]],
    shown: Mapping[str, Any],
    chosen: Mapping[str, Any] | None = None,
) -> str:
    """Currency as of :func:`billed_currency`, except that top-ups, which are in dollars for all, fix none.

    Raises:
        StripeError: Stripe refuses, or does not answer.
    """
    currency = billed_currency(found, shown, chosen)
    is_subscribed = has_live_subscription(found) or any(map(has_begun, found))
    if is_subscribed or not may_be_of_top_ups(currency, catalog):
        return currency
    invoices = await api.list("/v1/invoices", {"customer": text_in(shown, "id")})
    in_dollars = [one for one in invoices if text_in(one, "currency") == BALANCE_CURRENCY]
    is_topped_up = bool(in_dollars) and all(TOP_UP in part_of(one, "metadata") for one in in_dollars)
    return "" if is_topped_up else currency


def check_currency(requested: object, catalog: Catalog) -> str | None:
    """A requested currency in lower case; None: none was requested.

    Raises:
        MeterkitError: it is not one of the plans file.
    """
    if requested is None:
        return None
    if isinstance(requested, str) and requested.lower() in catalog.currencies:
        return requested.lower()
    shown = (
        f"{requested!r:.40}" if isinstance(requested, str) else f"a value of type {type(requested).__name__}"
    )
    raise MeterkitError(f"currency: found {shown}; allowed are {', '.join(catalog.currencies)}")


def choose_currency(customer: str, billed: str, requested: str | None, catalog: Catalog) -> str:
    """The currency of a new subscription: the customer's, otherwise the requested one, otherwise the first.

    In a plans file of one currency Stripe decides unless it was requested: a price at Stripe may have others.

    Args:
        customer: the customer's id.
        billed: see :func:`billed_currency`.
        requested: see :func:`check_currency`.
        catalog: the plans file.

    Raises:
        CurrencyError: the customer is billed in another currency than the requested one, or in one that the
            plans file lacks.
    """
    known = catalog.currencies
    wanted = requested or (billed if billed in known else known[0])
    if billed in {"", wanted} or (requested is None and len(known) == 1):
        return wanted
    words = f"customer {customer!r} is billed in {billed.upper()}, also after a cancellation"
    if billed in known:
        cure = f"{wanted.upper()} was requested; request {billed.upper()}, or nothing"
    else:
        cure = (
            f"the plans file has {', '.join(known).upper()}, and {wanted.upper()} was requested; add"
            f" {billed} to its `currency`"
        )
    raise CurrencyError(
        f"{words}: {cure}. To bill in another currency, delete the Stripe customer at Stripe",
        currency=billed,
        requested=wanted,
    )


def name_requested(error: CurrencyError, customer: str, requested: str) -> CurrencyError:
    """Add the requested currency to a refusal of Stripe, which may name only the customer's."""
    return same_error(
        error,
        f"customer {customer!r} is billed in {error.currency.upper()}, and {requested.upper()} was requested:"
        f" {error}",
        currency=error.currency,
        requested=requested,
    )
