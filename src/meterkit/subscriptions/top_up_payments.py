"""Grant paid top-ups once, and reclaim what was refunded or disputed.

The invoice's id is the grant's id. So it does not matter how often, in which order, or by which of its events
a payment is reported.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.customers.grants import add_grant, has_grant, reclaim_grant
from meterkit.decisions.grants import MICRO, target_of
from meterkit.errors import CustomerError, MeterkitError
from meterkit.store import replies
from meterkit.store.message_queue import publish_notice
from meterkit.subscriptions.invoice_payments import PAYMENTS, refunded_cents
from meterkit.subscriptions.stripe_objects import CUSTOMER, TOP_UP, id_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi


AutoTopUpStep = Literal["begin", "paid", "failed", "none", "bought", "on", "off"]


_PATIENCE_MS: Final = 3_600_000
"""After so long another event takes over an unfinished top-up, as the same purchase."""


async def move_auto_top_up(
    store: Store,
    customer: str,
    credit: str,
    to: AutoTopUpStep,
    *,
    event: str = "-",
    month: str = "-",
    most: int = 0,
) -> tuple[str, str] | None:
    """Move the state of a customer's automatic top-ups by ``lua/move_auto_top_up.lua``.

    Returns:
        Of ``begin``, month and event of the top-up to buy; None: buy none.

    Raises:
        StoreError: the store does not answer.
    """
    admin, keys = await store.admin(), store.keys.customer(customer)
    arguments = (target_of("credit", credit), to, event, month, most, _PATIENCE_MS)
    reply = await admin.run(store.scripts["move_auto_top_up"], [keys.ledger], *arguments)
    return (reply[1].decode(), reply[2].decode()) if reply[0] == replies.TOP_UP_BEGUN else None


_logger = logging.getLogger("meterkit.subscriptions")
_INVOICES: Final = "/v1/invoices"
_CENT: Final = MICRO // 100
"""In micro-credits: a balance in money is in US dollars."""


def top_up_metadata(customer: str, credit: str, amount_cents: int, event: str = "") -> dict[str, str]:
    """Metadata of the invoice of a top-up; an automatic one names the event that started it."""
    return {CUSTOMER: customer, TOP_UP: f"{credit} {amount_cents} {event}".rstrip()}


def refunded_share(granted_micros: int, refunded_cents: int, total_cents: int) -> int:
    """Part of a grant that a refund reclaims: its share of the invoice's total, rounded down."""
    return granted_micros * min(refunded_cents, total_cents) // total_cents


class TopUpPayments:
    """Grants and reclaims top-ups by their payments at Stripe.

    Each method raises :class:`~meterkit.errors.StripeError` where Stripe refuses or does not answer, and
    :class:`~meterkit.errors.StoreError` where the store does not.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
    """

    def __init__(self, store: Store, api: Callable[[], StripeApi]) -> None:
        self._store = store
        self._api = api

    async def settle(self, customer: str, invoice: str, *, is_paid: bool = False) -> Mapping[str, Any]:
        """Grant the top-up of a paid invoice, and reclaim what was refunded of it; return the invoice.

        Args:
            customer: the customer of the invoice's Stripe customer.
            invoice: its id.
            is_paid: whether an event reports it as paid; if Stripe shows otherwise, that is an error.

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
        # A discount given at Stripe does not enlarge the balance.
        total = int(found["total"])
        granted, target = min(int(amount), total) * _CENT, target_of("credit", credit)
        if granted <= 0:
            return found
        refunded = await refunded_cents(self._api(), invoice)
        # Before the grant: a process that dies in between repeats this. After it, this would start nothing.
        if not refunded and not await has_grant(self._store, customer, invoice):
            await move_auto_top_up(self._store, customer, credit, "bought", event=event.strip())
        await add_grant(self._store, customer, [(target, granted)], grant_id=invoice)
        if event.strip():
            await move_auto_top_up(self._store, customer, credit, "paid", event=event.strip())
        if refunded:
            back = refunded_share(granted, refunded, total)
            await self._reclaim_grant(customer, credit, invoice, back, is_all=back == granted)
        return found

    async def reclaim_payment(self, intent: str, find_owner: Callable[[str], Awaitable[str | None]]) -> None:
        """Reclaim what was refunded or is disputed of a top-up's payment; ignore other payments.

        Args:
            intent: its payment intent.
            find_owner: returns the customer that a Stripe customer is linked to.
        """
        asked: dict[str, Any] = {"payment": {"type": "payment_intent", "payment_intent": intent}}
        for payment in await self._api().list(PAYMENTS, asked):
            found = await self._api().get(f"{_INVOICES}/{id_in(payment, 'invoice')}")
            if TOP_UP in part_of(found, "metadata"):
                customer = await find_owner(id_in(found, "customer"))
                if customer is not None:
                    await self.settle(customer, str(found["id"]))

    async def _reclaim_grant(
        self, customer: str, credit: str, invoice: str, micros: int, *, is_all: bool
    ) -> None:
        target = target_of("credit", credit)
        found = await reclaim_grant(
            self._store, customer, target, grant_id=invoice, refunded=micros, is_all=is_all
        )
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
        data = {
            "id": f"top_up.refunded/{invoice}/{micros}",
            "at_ms": self._store.now_ms(),
            "invoice": invoice,
            "credit": credit,
            "refunded_cents": refunded_cents,
            "taken_back_cents": taken_cents,
        }
        await publish_notice(self._store, customer, "top_up.refunded", data)
