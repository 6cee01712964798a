"""Findings about links: Stripe customers that do not exist."""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.errors import StripeError
from meterkit.health.findings import Finding, named

if TYPE_CHECKING:
    from meterkit.customers.customers import Customers
    from meterkit.stripe.api import StripeApi

_LINKS_MAX: Final = 1_000
_PAGES_MAX: Final = 10
_ASKED_MAX: Final = 20


async def links_to_nobody(api: StripeApi, customers: Customers) -> list[Finding]:
    """Customers who are linked to a Stripe customer that Stripe does not have.

    Compares the first thousand links with the first pages of Stripe's list, and asks for a few of the rest:
    the list leaves out customers of test clocks. None where the key may not read customers.

    Raises:
        StripeError: Stripe refuses, or does not answer.
        StoreError: the store does not answer.
    """
    linked: dict[str, str] = {}
    async for customer in customers.list():
        if customer.stripe_customer is not None and len(linked) < _LINKS_MAX:
            linked[customer.stripe_customer] = customer.customer
    try:
        missing = await _missing(api, set(linked))
    except StripeError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            return []
        raise
    if not missing:
        return []
    pairs = [f"{linked[stripe_customer]} ({stripe_customer})" for stripe_customer in missing]
    return [
        Finding(
            check="links",
            problem=f"Stripe does not have the customers that these are linked to: {named(pairs)};"
            " their usage is on no invoice",
            cure="meterkit customers unlink CUSTOMER, then link the Stripe customer that pays",
        )
    ]


async def _missing(api: StripeApi, unseen: set[str]) -> list[str]:
    if not unseen:
        return []
    pages = 0
    async with aclosing(api.pages("/v1/customers")) as listed:
        async for page in listed:
            unseen -= {str(found["id"]) for found in page}
            pages += 1
            if not unseen or pages == _PAGES_MAX:
                break
    return [one for one in sorted(unseen)[:_ASKED_MAX] if await _is_missing(api, one)]


async def _is_missing(api: StripeApi, stripe_customer: str) -> bool:
    try:
        found = await api.get(f"/v1/customers/{stripe_customer}")
    except StripeError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return True
        raise
    return found.get("deleted") is True
