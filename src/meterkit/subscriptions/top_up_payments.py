"""Grant paid top-ups once, and reclaim what was refunded, disputed or credited.

The invoice's id is the grant's id. So it does not matter how often, in which order, or by which of its events
a payment is reported. The invoice's metadata names the customer: a refund is reclaimed from the grant that it
paid, whichever customer its Stripe customer is linked to by then.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.customers.grants import add_grant, mark_reclaim_reported, read_granted, reclaim_grant
from meterkit.customers.links import StripeLinker
from meterkit.decisions.grants import MICRO, target_of
from meterkit.errors import CustomerError, MeterkitError, StoreError
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY
from meterkit.store import replies
from meterkit.store.customer_notices import publish_notice
from meterkit.stripe.prices import taxes_on_top
from meterkit.subscriptions.invoice_payments import PAYMENTS, read_returned
from meterkit.subscriptions.stripe_objects import TOP_UP, id_in, part_of, text_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
INVOICES: Final = "/v1/invoices"
_CENT: Final = MICRO // 100
"""In micro-credits: a balance in money is in US dollars."""


def top_up_metadata(customer: str, credit: str, amount_cents: int, event: str = "") -> dict[str, str]:
    """Metadata of the invoice of a top-up; an automatic one names the event that started it."""
    return {CUSTOMER_KEY: customer, TOP_UP: f"{credit} {amount_cents} {event}".rstrip()}


class TopUpInvoice(NamedTuple):
    """The top-up that an invoice is for.

    Attributes:
        invoice: its id.
        linked: its Stripe customer.
        customer: the customer who bought it.
        credit: the credit that it adds to.
        amount: in cents, as its metadata has it.
        event: the event that started it, if it is an automatic one; empty: the customer bought it.
        paid_cents: the invoice's total, less what was credited before the payment.
        net_cents: the part of it that is no tax on top of the price.
    """

    invoice: str
    linked: str
    customer: str
    credit: str
    amount: str
    event: str
    paid_cents: int
    net_cents: Fraction


def read_top_up(found: Mapping[str, Any]) -> TopUpInvoice | None:
    """Read the top-up of an invoice as Stripe shows it; None if it is for none."""
    metadata = part_of(found, "metadata")
    credit, amount, event = f"{text_in(metadata, TOP_UP)}  ".split(" ", 2)
    if not credit:
        return None
    total = int(found["total"])
    paid = total - int(found.get("pre_payment_credit_notes_amount") or 0)
    return TopUpInvoice(
        invoice=str(found["id"]),
        linked=id_in(found, "customer"),
        customer=text_in(metadata, CUSTOMER_KEY),
        credit=credit,
        amount=amount,
        event=event.strip(),
        paid_cents=paid,
        net_cents=Fraction((total - taxes_on_top(found)) * paid, total or 1),
    )


def returned_share(granted_micros: int, returned_cents: int, paid_cents: int) -> int:
    """Part of a grant that is reclaimed: the returned share of what was paid, rounded down."""
    return granted_micros * returned_cents // paid_cents


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
        self._links = StripeLinker(store)
        self._api = api

    async def fetch_invoice(self, invoice: str) -> dict[str, Any]:
        """Fetch an invoice."""
        return await self._api().get(f"{INVOICES}/{invoice}")

    async def list_invoices(self, intent: str) -> list[str]:
        """List the ids of the invoices that a payment intent paid."""
        asked: dict[str, Any] = {"payment": {"type": "payment_intent", "payment_intent": intent}}
        return [id_in(payment, "invoice") for payment in await self._api().list(PAYMENTS, asked)]

    async def settle(self, invoice: str) -> Mapping[str, Any]:
        """Settle the invoice of a top-up that a customer was charged for; return the invoice.

        Raises:
            CustomerError: its customer was deleted or linked anew meanwhile.
            MeterkitError: it cannot be granted; the error says why.
        """
        found = await self.fetch_invoice(invoice)
        await self.settle_invoice(found, is_reported=found["status"] == "paid")
        return found

    async def settle_invoice(self, found: Mapping[str, Any], *, is_reported: bool = False) -> str | None:
        """Grant the top-up of a paid invoice, and reclaim what was returned of the payment.

        Args:
            found: the invoice as Stripe shows it.
            is_reported: whether its payment is news; if Stripe shows it as unpaid, that is an error.

        Returns:
            The customer of the top-up; None if nothing was granted to a customer here.

        Raises:
            CustomerError: it is the top-up of another customer, or of one who is not linked.
            MeterkitError: it cannot be granted; the error says why.
        """
        bought = read_top_up(found)
        if bought is None:
            return None
        if is_reported and found["status"] != "paid":
            raise MeterkitError(
                f"an event says that invoice {bought.invoice} is paid, and Stripe shows it as"
                f" {found['status']}: nothing was granted yet"
            )
        if found["status"] != "paid":
            owner = await self._links.find_owner(bought.linked)
            return bought.customer if bought.customer == owner else None
        if bought.paid_cents <= 0:
            return None
        target = target_of("credit", bought.credit)
        granted = await read_granted(self._store, bought.customer, target, bought.invoice)
        cents, is_disputed = await read_returned(self._api(), found)
        returned = min(bought.paid_cents, cents)
        is_all = returned == bought.paid_cents
        if not granted:
            try:
                granted = await self._grant_top_up(bought, is_reported=is_reported, is_returned=returned > 0)
            except StoreError:
                raise
            except MeterkitError:
                if not is_all:
                    raise
        if not granted:
            return None
        if bought.event:
            await move_auto_top_up(self._store, bought.customer, bought.credit, "paid", event=bought.event)
        if returned:
            # The consent has ended with the money that went back.
            await self._reclaim_grant(bought, granted, returned, is_all=is_all, is_disputed=is_disputed)
        return bought.customer

    async def _grant_top_up(self, bought: TopUpInvoice, *, is_reported: bool, is_returned: bool) -> int:
        """Grant a top-up and return its micro-credits; 0: it was erased with its customer."""
        invoice, customer, credit = bought.invoice, bought.customer, bought.credit
        owner = await self._links.find_owner(bought.linked)
        if customer != owner:
            is_orphan = owner is None and not is_reported
            if is_orphan and await self._links.is_retired(bought.linked):
                return 0
            whom = "no customer" if owner is None else f"{owner!r:.80}"
            raise CustomerError(
                f"invoice {invoice} is a top-up of customer {customer!r:.80}, and its Stripe customer"
                f" {bought.linked} is linked to {whom}: nothing was granted. Refund it at Stripe, link"
                " that customer, or set `meterkit_customer` in the invoice's metadata at Stripe"
            )
        if credit not in self._store.catalog.credits or not bought.amount.isdecimal():
            raise MeterkitError(
                f"invoice {invoice} is a top-up of {bought.amount!r:.20} cents of {credit!r:.80}, which is no"
                " credit of the plans file: nothing was granted. Refund it at Stripe, or declare that credit"
            )
        # A discount or a credit given at Stripe does not enlarge the balance.
        granted = int(min(Fraction(int(bought.amount)), bought.net_cents) * _CENT)
        # Before the grant: a process that dies in between repeats this. After it, this would start nothing.
        if not granted:
            return 0
        if not is_returned:
            await move_auto_top_up(self._store, customer, credit, "bought", event=bought.event)
        await add_grant(self._store, customer, [(target_of("credit", credit), granted)], grant_id=invoice)
        return granted

    async def _reclaim_grant(
        self, bought: TopUpInvoice, granted: int, returned: int, *, is_all: bool, is_disputed: bool
    ) -> None:
        customer, invoice = bought.customer, bought.invoice
        micros = returned_share(granted, returned, bought.paid_cents)
        target = target_of("credit", bought.credit)
        found = await reclaim_grant(
            self._store,
            customer,
            target,
            grant_id=invoice,
            refunded=micros,
            stops_automatic=is_all or is_disputed,
            owes=is_disputed,
        )
        if not found.more:
            return
        # The payment may have been more than the grant, by taxes.
        refunded_cents = round(Fraction(found.more * bought.paid_cents, granted))
        taken_cents = found.taken // _CENT
        _logger.warning(
            "top-up %s of customer %r: %d cents were refunded or are disputed; %d of them are taken off the"
            " balance",
            invoice,
            customer,
            refunded_cents,
            taken_cents,
        )
        data = {
            "id": f"top_up.refunded/{invoice}/{micros}",
            "at_ms": self._store.now_ms(),
            "invoice": invoice,
            "credit": bought.credit,
            "refunded_cents": refunded_cents,
            "taken_back_cents": taken_cents,
        }
        await publish_notice(self._store, customer, "top_up.refunded", data)
        await mark_reclaim_reported(self._store, customer, target, invoice)
