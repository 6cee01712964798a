"""A kit that sells balances in money at an emulated account: what tests of top-ups share."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Final

import pytest

from drivers.plans import plans_text
from drivers.webhooks import Hooked, hooked
from meterkit import MeterKit, TopUp
from meterkit.catalog import loads
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.service.top_ups import AutoTopUps, Credits
from meterkit.subscriptions.top_up_payments import TopUpPayments
from meterkit.subscriptions.webhooks.customer_sync import NIGHTLY
from meterkit.subscriptions.webhooks.sync_queue import SyncQueue

PLANS: Final = plans_text("top_ups")
CATALOG: Final = loads(PLANS)
AUTO: Final = loads(
    PLANS.replace(
        "packs: [1000, 5000]", "packs: [1000], auto: {below: 500, amount: 2000, at_most: 2 per month}"
    )
)
BACK: Final[dict[str, Any]] = {"success_url": "https://app.example/paid", "cancel_url": "https://app.example"}
DOLLAR: Final = 1_000_000


def sold(store_url: str, **settings: Any) -> AbstractAsyncContextManager[Hooked]:
    return hooked(store_url, catalog=CATALOG, **settings)


async def opened(at: Hooked) -> None:
    await at.kit.stripe.sync()


async def balance(at: Hooked, customer: str = "acme") -> int:
    return (await at.kit.usage(customer))["balance_micros"].get("usd", 0)


async def with_card(at: Hooked, card: str = "pm_card_visa", customer: str = "acme") -> None:
    await at.kit.customers.link(customer, at.customer(customer, card=card))


async def bought(at: Hooked, amount_cents: int = 1000, **how: Any) -> TopUp:
    return await at.kit.credits.buy("acme", amount_cents, **how)


async def invoiced(at: Hooked, customer: str, what: str) -> str:
    """An invoice over ten dollars that is marked as a top-up of a customer."""
    price = (await at.client.v1.prices.list_async({"lookup_keys": ["meterkit-top-up:usd:1000"]})).data[0].id
    marked: Any = {"meterkit_customer": customer, "meterkit_top_up": what}
    invoice = str((await at.client.v1.invoices.create_async({"customer": "cus_acme", "metadata": marked})).id)
    await at.client.v1.invoice_items.create_async(
        {"customer": "cus_acme", "invoice": invoice, "pricing": {"price": price}}
    )
    return invoice


async def entries(at: Hooked) -> list[tuple[str, int]]:
    """The ledger, in dollars."""
    return sorted((line.entry, line.quantity // DOLLAR) for line in await at.kit.grants.ledger("acme"))


async def refund(at: Hooked, invoice: str = "", cents: int = 1000) -> None:
    """Give back a purchase: by default what was bought first."""
    if not invoice:
        invoice = str((await at.client.v1.invoices.list_async({"customer": "cus_acme"})).data[-1].id)
    paid = await at.client.v1.invoice_payments.list_async({"invoice": invoice})
    intent = str(paid.data[0].payment.payment_intent)
    await at.client.v1.refunds.create_async({"payment_intent": intent, "amount": cents})


async def night(at: Hooked) -> None:
    """The nightly sync looks at the customer."""
    await SyncQueue(at.kit.store).request("cus_acme", NIGHTLY)
    await at.kit.webhooks.work_off()


def dying(at: Hooked) -> tuple[Any, Credits, AutoTopUps]:
    return parts_of(at.kit)


def parts_of(kit: MeterKit) -> tuple[Any, Credits, AutoTopUps]:
    """The way of a kit to Stripe, on which a process can end, and what sells its top-ups over it."""
    api, store = StripeApi(kit.settings), kit.store
    sells = Credits(store, lambda: api, TopUpPayments(store, lambda: api))
    return api, sells, AutoTopUps(store, sells)


@contextmanager
def cut_off(api: Any, *, after: int) -> Generator[None]:
    """The process ends within the block, once Stripe has answered so many requests that change something."""
    post, posts = api.post, 0

    async def dies(*asked: Any, **how: Any) -> Any:
        nonlocal posts
        found = await post(*asked, **how)
        posts += 1
        if posts == after:
            raise asyncio.CancelledError
        return found

    api.post = dies
    with pytest.raises(asyncio.CancelledError):
        yield
    api.post = post
