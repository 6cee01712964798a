"""Grant paid top-ups once, and reclaim what was refunded or disputed.

The invoice's id is the grant's id. So it does not matter how often, in which order, or by which of its events
a payment is reported.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.customers.granting import is_given, put, reclaim
from meterkit.decisions.grants import MICRO, target_of
from meterkit.errors import CustomerError, MeterkitError
from meterkit.store.message_queue import publish_notice
from meterkit.subscriptions.invoice_payments import PAYMENTS, refunded_cents
from meterkit.subscriptions.stripe_objects import CUSTOMER, TOP_UP, id_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi


Step = Literal["begin", "paid", "failed", "none", "bought", "on", "off"]


_PATIENCE_MS: Final = 3_600_000
"""After so long another event takes over a top-up that has begun and not ended, as the same purchase."""


async def step(
    store: Store, customer: str, credit: str, what: Step, *, event: str = "-", month: str = "-", most: int = 0
) -> tuple[str, str] | None:
    """Move the state of a customer's automatic top-ups; see ``lua/top_up.lua``.

    Returns:
        Of ``begin``, the month and the event of the top-up that is to be bought; None: none is.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    asked = (target_of("credit", credit), what, event, month, most, _PATIENCE_MS)
    reply = await admin.run(store.scripts["top_up"], [keys.ledger], *asked)
    return (reply[1].decode(), reply[2].decode()) if reply[0] else None


_logger = logging.getLogger("meterkit.subscriptions")
_INVOICES: Final = "/v1/invoices"
_CENT: Final = MICRO // 100
"""Micro-credits: a balance in money is in US dollars."""


def mark_of_top_up(customer: str, credit: str, amount_cents: int, event: str = "") -> dict[str, str]:
    """The metadata of the invoice that a top-up is bought with; the event began it where it is automatic."""
    return {CUSTOMER: customer, TOP_UP: f"{credit} {amount_cents} {event}".rstrip()}


class TopUpPayments:
    """Brings the grants of a customer up to date with what Stripe says of the payments.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses or does not answer, and
    :class:`~meterkit.errors.StoreError` where the store does not.

    Args:
        store: where customers are kept.
        api: the way to Stripe.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api

    async def settle(self, customer: str, invoice: str, *, is_paid: bool = False) -> Mapping[str, Any]:
        """Grant what an invoice has paid for, and take back what was refunded of it; the invoice.

        Args:
            customer: the owner of the Stripe customer that the invoice is of.
            invoice: its id.
            is_paid: whether an event says that it is paid: then it is an error if Stripe does not show that.

        Raises:
            CustomerError: it is another customer's top-up.
            MeterkitError: it cannot be granted; the error says why.
        """
        found = await self._api().get(f"{_INVOICES}/{invoice}")
        metadata = part_of(found, "metadata")
        credit, amount, event = f"{text_in(metadata, TOP_UP)}  ".split(" ", 2)
        if credit and is_paid and found["status"] != "paid":
            raise MeterkitError(
                f"an event says that invoice {invoice} is paid, and Stripe shows it as {found['status']}:"
                " nothing was granted yet"
            )
        if not credit or found["status"] != "paid":
            return found
        named = text_in(metadata, CUSTOMER)
        if named != customer:
            linked = id_in(found, "customer")
            raise CustomerError(
                f"invoice {invoice} is a top-up of customer {named!r:.80}, and its Stripe customer {linked}"
                f" is linked to {customer!r:.80}: nothing was granted. Refund it at Stripe, or link the"
                " customer that it is of"
            )
        if credit not in self._store.catalog.credits or not amount.isdecimal():
            raise MeterkitError(
                f"invoice {invoice} is a top-up of {amount!r:.20} cents of {credit!r:.80}, which is no credit"
                " of the plans file: nothing was granted. Refund it at Stripe, or declare that credit"
            )
        # A discount that a person has given at Stripe is no gift of a balance.
        total = int(found["total"])
        granted, target = min(int(amount), total) * _CENT, target_of("credit", credit)
        if granted <= 0:
            return found
        refunded = await refunded_cents(self._api(), invoice)
        # Before it is granted: who is cut off in between comes here again. Later it starts nothing again.
        if not refunded and not await is_given(self._store, customer, invoice):
            await step(self._store, customer, credit, "bought", event=event.strip())
        await put(self._store, customer, [(target, granted)], grant_id=invoice)
        if event.strip():
            await step(self._store, customer, credit, "paid", event=event.strip())
        if refunded:
            back = granted * min(refunded, total) // total
            await self._take_back(customer, credit, invoice, back, is_all=back == granted)
        return found

    async def take_back(self, intent: str, owner: Callable[[str], Awaitable[str | None]]) -> None:
        """Take back what was refunded, or is disputed, of a payment; one that is no top-up's stays.

        Args:
            intent: its payment intent.
            owner: gives the customer that a Stripe customer is linked to.
        """
        asked: dict[str, Any] = {"payment": {"type": "payment_intent", "payment_intent": intent}}
        for payment in await self._api().list(PAYMENTS, asked):
            found = await self._api().get(f"{_INVOICES}/{id_in(payment, 'invoice')}")
            if TOP_UP in part_of(found, "metadata"):
                customer = await owner(id_in(found, "customer"))
                if customer is not None:
                    await self.settle(customer, str(found["id"]))

    async def _take_back(
        self, customer: str, credit: str, invoice: str, micros: int, *, is_all: bool
    ) -> None:
        target = target_of("credit", credit)
        found = await reclaim(self._store, customer, target, grant_id=invoice, refunded=micros, is_all=is_all)
        if not found.more:
            return
        refunded_cents, taken_cents = -(-found.more // _CENT), found.taken // _CENT
        _logger.warning(
            "top-up %s of customer %r: %d cents were refunded or are disputed; %d of them were left and are"
            " taken back",
            invoice,
            customer,
            refunded_cents,
            taken_cents,
        )
        told = {
            "id": f"top_up.refunded/{invoice}/{micros}",
            "at_ms": self._store.now_ms(),
            "invoice": invoice,
            "credit": credit,
            "refunded_cents": refunded_cents,
            "taken_back_cents": taken_cents,
        }
        await publish_notice(self._store, customer, "top_up.refunded", told)
