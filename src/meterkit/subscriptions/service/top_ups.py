"""``kit.credits``: sell balances in money, on a Stripe page, with the saved card, or automatically."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.catalog.credit_values import find_top_ups
from meterkit.catalog.currencies import BALANCE_CURRENCY
from meterkit.customers.links import StripeLinker
from meterkit.customers.states import CustomerStates
from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import from_ms
from meterkit.errors import (
    CustomerError,
    MeterkitError,
    PaymentMethodMissingError,
    QuantityError,
    StripeError,
)
from meterkit.log_throttle import HOUR_S, Throttle
from meterkit.store.customer_notices import publish_notice
from meterkit.store.input_checks import check_customer
from meterkit.stripe.idempotency_keys import key_of
from meterkit.subscriptions.plan_prices import prices_by_key
from meterkit.subscriptions.service.stripe_customers import StripeCustomers
from meterkit.subscriptions.stripe_objects import (
    PURCHASE,
    default_method,
    id_in,
    pack_key,
    part_of,
    subscription_method,
    text_in,
)
from meterkit.subscriptions.top_up_payments import INVOICES, move_auto_top_up, top_up_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.catalog.credit_values import AutoTopUp
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.idempotency_keys import IdempotencyKey
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.service.stripe_customers import ContactSource
    from meterkit.subscriptions.top_up_payments import AutoTopUpStep, TopUpPayments


_SESSIONS: Final = "/v1/checkout/sessions"
_DAY_S: Final = 86_400
_KEYS_KEPT_S: Final = 2 * _DAY_S
"""Stripe keeps idempotency keys for at least a day."""
_TAKE_DAYS: Final = frozenset(
    {
        "acss_debit",
        "au_becs_debit",
        "bacs_debit",
        "boleto",
        "customer_balance",
        "konbini",
        "multibanco",
        "nz_bank_account",
        "oxxo",
        "sepa_debit",
        "sofort",
        "us_bank_account",
    }
)
"""Types of payment methods whose payments succeed or fail later
(https://docs.stripe.com/payments/payment-methods#payment-notification)."""
_NOT_OF_TOP_UPS: Final = frozenset(
    {"allow_promotion_codes", "discounts", "payment_method_collection", "subscription_data"}
)
"""Checkout options that only subscriptions take, or that would make balances cheaper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopUp:
    """A top-up that a customer buys.

    Attributes:
        amount_cents: added to the balance, in US cents.
        status: ``paid``: the balance has it; ``open``: it waits for the payment.
        url: page where the customer pays; None: it is paid, or a bank transfer from the page is on its way.
        invoice: its id at Stripe, also the id of the grant; None: a page was opened, and its invoice is made
            when it is paid.
        declined: Stripe's decline code of the saved card; None: it was not declined.
    """

    amount_cents: int
    status: Literal["paid", "open"]
    url: str | None
    invoice: str | None = None
    declined: str | None = None


class _Purchase(NamedTuple):
    """A purchase at Stripe: its kind by the path, and the invoice or page."""

    path: str
    amount_cents: int
    shown: dict[str, Any]


class _VoidedError(MeterkitError):
    """The invoice of a purchase was voided at Stripe: nothing more comes of it."""


class Credits:
    """Sells balances in money.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        payments: grants paid top-ups.
        contact: provides the contact of a new Stripe customer.
    """

    def __init__(
        self,
        store: Store,
        api: Callable[[], StripeApi],
        payments: TopUpPayments,
        contact: ContactSource | None = None,
    ) -> None:
        self._store = store
        self._api = api
        self._payments = payments
        self._states = CustomerStates(store)
        self._links = StripeLinker(store)
        self._stripe_customers = StripeCustomers(store, api, contact)

    async def buy(
        self,
        customer: str,
        amount_cents: int,
        *,
        success_url: str | None = None,
        cancel_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> TopUp:
        """Sell a customer a top-up: on a page of Stripe's, or charged to the saved card at once.

        With ``success_url`` a page is opened, valid for a day; the card is saved there for later top-ups.
        Without it the saved card is charged. If that is declined, or the customer must confirm the payment,
        nothing is granted, and ``url`` is a page where the customer pays. A paid top-up is granted once, by
        the id of its invoice.

        Args:
            customer: the customer's id; one who is not linked to a Stripe customer gets one.
            amount_cents: one of the amounts under ``top_up`` in the plans file.
            success_url: Stripe redirects the customer here after the payment.
            cancel_url: Stripe redirects a customer who goes back here; with ``success_url`` only.
            idempotency_key: names this purchase: the same key charges once in 24 hours. It is refused with
                another amount, and with a page after a charge, or the reverse; default: a new one.

        Raises:
            CustomerError: the id is not allowed, or the customer is deleted meanwhile.
            QuantityError: the amount is not sold.
            PaymentMethodMissingError: there is no saved card; open a page.
            MeterkitError: the plans file sells no top-ups, Stripe has no price of them yet, or
                ``idempotency_key`` was used for another purchase, for a page that has expired, or an invoice
                that was voided.
            SettingsError: no Stripe key is set.
            StripeError: Stripe refuses, or does not answer; ask again with the same ``idempotency_key``.
            StoreError: the store does not answer.
        """
        credit = self._credit_sold_at(amount_cents)
        if cancel_url is not None and success_url is None:
            raise MeterkitError("cancel_url: found without success_url; give both, or neither")
        customer = check_customer(customer)
        key = idempotency_key or token_hex(16)
        if success_url is None:
            return await self.charge(customer, amount_cents, key)
        linked = await self._stripe_customers.find_or_create(customer)
        price = await self._find_price(credit, amount_cents)
        mark: dict[str, Parameter] = {**top_up_metadata(customer, credit, amount_cents)}
        urls = {"success_url": success_url, "cancel_url": cancel_url}
        purchase = key_of("top-up", customer, key)
        page = await self._open_page(linked, price, amount_cents, mark, urls, purchase)
        if invoice := id_in(page, "invoice"):
            return _top_up_of(await self._payments.settle(invoice), amount_cents)
        return TopUp(amount_cents=amount_cents, status="open", url=text_in(page, "url") or None)

    async def charge(
        self, customer: str, amount_cents: int, key: str, *, event: str = "", since_s: int = 0
    ) -> TopUp:
        """Charge the saved card for a top-up; raises as :meth:`buy` does.

        An automatic top-up that has begun goes on with its invoice, however long ago that was made, and
        whatever amount the plans file has now.

        Args:
            customer: the customer's id.
            amount_cents: one of the amounts that are sold.
            key: names the purchase.
            event: the event that started an automatic top-up; empty: the customer buys it.
            since_s: when an automatic top-up began at the earliest (Unix seconds).
        """
        credit = self._credit_sold_at(amount_cents)
        linked = await self._stripe_customers.find_or_create(customer)
        purchase = key_of("top-up", customer, key)
        earlier = await self._find_purchase(linked, purchase, since_s) if event else None
        if earlier is not None:
            amount_cents = earlier.amount_cents
        price = await self._find_price(credit, amount_cents)
        card = await self._find_card(customer, linked)
        if card is None and earlier is None:
            earlier = await self._find_purchase(linked, purchase)
        if card is None and (earlier is None or earlier.shown["status"] != "paid"):
            message = f"customer {customer!r} has no saved card; open a page with success_url and cancel_url"
            raise PaymentMethodMissingError(message, url=None)
        asked: dict[str, Parameter] = {
            "customer": linked,
            "currency": BALANCE_CURRENCY,
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "discounts": "",  # Otherwise those of the customer.
            "metadata": top_up_metadata(customer, credit, amount_cents, event),
            **self._tax_params(),
        }
        if earlier is None:
            made = await self._create_once(INVOICES, asked, amount_cents, purchase)
        else:
            made = _same_purchase(earlier, INVOICES, amount_cents)
        return await self._charge_invoice(customer, made, price, card, amount_cents, purchase)

    async def set_auto(self, customer: str, enabled: bool) -> None:
        """Turn automatic top-ups of a customer on or off; on, also after a declined card.

        They start by themselves with the first top-up that the customer pays for.

        Raises:
            CustomerError: the id is not allowed.
            MeterkitError: the plans file has no automatic top-ups.
            StoreError: the store does not answer.
        """
        customer = check_customer(customer)
        sold = find_top_ups(self._store.catalog.credits)
        if sold is None or sold[1].auto is None:
            raise MeterkitError(
                "the plans file has no automatic top-ups: write `auto: {below: 500, amount: 2000, at_most: 3"
                " per month}` at `top_up`"
            )
        await move_auto_top_up(self._store, customer, sold[0], "on" if enabled else "off")

    async def _open_page(
        self,
        linked: str,
        price: str,
        amount_cents: int,
        metadata: dict[str, Parameter],
        urls: Mapping[str, str | None],
        purchase: IdempotencyKey,
    ) -> dict[str, Any]:
        """Open a page, or fetch the one that the key has opened, as it is now."""
        common = self._store.catalog.billing.checkout
        options = {name: value for name, value in common.items() if name not in _NOT_OF_TOP_UPS}
        made = await self._create_once(
            _SESSIONS,
            {
                **options,
                **urls,
                "mode": "payment",
                "currency": BALANCE_CURRENCY,  # A price may have the customer's, too.
                "customer": linked,
                "line_items": [{"price": price, "quantity": 1}],
                "invoice_creation": {"enabled": True, "invoice_data": {"metadata": metadata}},
                "payment_intent_data": {"setup_future_usage": "off_session"},
                "metadata": {},
            },
            amount_cents,
            purchase,
        )
        # A repeated key is answered as the first time: the page may be paid since.
        page = await self._api().get(f"{_SESSIONS}/{made['id']}")
        if page["status"] == "expired":
            raise MeterkitError("idempotency_key: found that of an expired page; use another key")
        return page

    async def _charge_invoice(
        self,
        customer: str,
        made: Mapping[str, Any],
        price: str,
        card: str | None,
        amount_cents: int,
        purchase: IdempotencyKey,
    ) -> TopUp:
        """Do what is left of an invoice's way to its payment, and grant it once it is paid.

        The invoice says how far it is: keys expire, and a person or the customer's balance may have paid it.
        """
        api, path, refusal = self._api(), f"{INVOICES}/{made['id']}", None
        found: Mapping[str, Any] = await api.get(path)
        if found["status"] == "void":
            raise _VoidedError(f"invoice {made['id']} of this top-up was voided; buy it with another key")
        linked = id_in(found, "customer")
        if found["status"] != "paid" and await self._links.find_owner(linked) != customer:
            raise CustomerError(
                f"customer {customer!r} was deleted or linked anew meanwhile: nothing is charged"
            )
        if found["status"] == "draft":

            async def find_line() -> dict[str, Any] | None:
                return next(iter(part_of(await api.get(path), "lines")["data"]), None)

            if not part_of(found, "lines")["data"]:
                item = {"customer": linked, "invoice": made["id"], "pricing": {"price": price}}
                item_key = key_of("top-up-item", purchase)
                await api.post("/v1/invoiceitems", item, idempotency_key=item_key, find=find_line)
            finalize = {"auto_advance": False}
            finalize_key = key_of("top-up-finalize", purchase)
            found = await api.post(f"{path}/finalize", finalize, idempotency_key=finalize_key)
        if found["status"] != "paid":
            pay: dict[str, Parameter] = {"off_session": True, "payment_method": card}
            try:
                await api.post(f"{path}/pay", pay, idempotency_key=key_of("top-up-pay", purchase, card))
            except StripeError as error:
                refusal = error
        found = await self._payments.settle(str(made["id"]))
        if refusal is None or found["status"] == "paid":
            return _top_up_of(found, amount_cents)
        if refusal.status != HTTPStatus.PAYMENT_REQUIRED:
            raise refusal
        return _top_up_of(found, amount_cents, declined=refusal.code or "card_declined")

    async def _create_once(
        self, path: str, asked: Mapping[str, Parameter], amount_cents: int, purchase: IdempotencyKey
    ) -> Mapping[str, Any]:
        """Create an invoice or a page, or find that of the key; refuse one of another amount or kind.

        What else is asked may differ from the first time, such as taxes or the URLs.
        """

        async def find_same() -> dict[str, Any] | None:
            earlier = await self._find_purchase(str(asked["customer"]), purchase)
            return None if earlier is None else _same_purchase(earlier, path, amount_cents)

        named = {**asked, "metadata": {**part_of(asked, "metadata"), PURCHASE: f"{purchase} {amount_cents}"}}
        try:
            return await self._api().post(path, named, idempotency_key=purchase, find=find_same)
        except StripeError as error:
            if error.type == "idempotency_error" and (same := await find_same()) is not None:
                return same
            raise

    async def _find_purchase(
        self, linked: str, purchase: IdempotencyKey, since_s: int | None = None
    ) -> _Purchase | None:
        """The purchase that used a key; None if it is not found."""
        if since_s is None:
            since_s = self._store.now_ms() // 1000 - _KEYS_KEPT_S
        asked: dict[str, Parameter] = {"customer": linked, "created": {"gte": since_s}}
        for path in (INVOICES, _SESSIONS):
            for one in await self._api().list(path, asked):
                name, _, cents = text_in(part_of(one, "metadata"), PURCHASE).partition(" ")
                if name == purchase:
                    return _Purchase(path, int(cents), one)
        return None

    def _credit_sold_at(self, amount_cents: int) -> str:
        """The credit that is sold in this amount; raises if none is."""
        sold = find_top_ups(self._store.catalog.credits)
        if sold is None:
            raise MeterkitError(
                "the plans file sells no top-ups: write `top_up: {packs: [1000, 5000]}` at a credit with"
                " `unit: money`"
            )
        credit, top_ups = sold
        if type(amount_cents) is int and amount_cents in top_ups.amounts:
            return credit
        amounts = ", ".join(map(str, top_ups.amounts))
        raise QuantityError(f"amount_cents: found {amount_cents!r:.40}; allowed are {amounts}")

    async def _find_price(self, credit: str, amount_cents: int) -> str:
        key = pack_key(credit, amount_cents)
        found = await prices_by_key(self._api(), [key])
        if key not in found:
            raise MeterkitError(
                f"Stripe has no price of a top-up of {amount_cents} cents of {credit} (lookup key {key});"
                " `meterkit stripe sync` makes it"
            )
        return str(found[key]["id"])

    async def _find_card(self, customer: str, linked: str) -> str | None:
        """The payment method to charge: the default, the subscription's, or the last saved.

        Bank accounts are left out: their payments take days, and most of them cannot pay US dollars.
        """
        listed = await self._api().list(f"/v1/customers/{linked}/payment_methods")
        saved = [str(one["id"]) for one in listed if text_in(one, "type") not in _TAKE_DAYS]
        if not saved:
            return None
        owner = await self._api().get(f"/v1/customers/{linked}")
        if (default := default_method(owner)) in saved:
            return default
        _, state = await self._states.read(customer)
        if state.subscription is not None:
            found = await self._api().get(f"/v1/subscriptions/{state.subscription.id}")
            if (own := subscription_method(found)) in saved:
                return own
        return saved[0]

    def _tax_params(self) -> dict[str, Parameter]:
        """Parameter that taxes invoices if pages are taxed."""
        taxes = self._store.catalog.billing.checkout.get("automatic_tax")
        return {} if taxes is None else {"automatic_tax": taxes}


def _same_purchase(earlier: _Purchase, path: str, amount_cents: int) -> dict[str, Any]:
    """The invoice or page of an earlier purchase; raises if it is of another amount or kind."""
    if (earlier.path, earlier.amount_cents) == (path, amount_cents):
        return earlier.shown
    kind = "on a page" if earlier.path == _SESSIONS else "with the saved card"
    raise MeterkitError(
        f"idempotency_key: found with {amount_cents} cents; it names a purchase of {earlier.amount_cents}"
        f" cents {kind}. Use another key for another purchase, or repeat it as it was"
    )


def _top_up_of(invoice: Mapping[str, Any], amount_cents: int, *, declined: str | None = None) -> TopUp:
    is_paid = invoice["status"] == "paid"
    return TopUp(
        amount_cents=amount_cents,
        status="paid" if is_paid else "open",
        url=None if is_paid else text_in(invoice, "hosted_invoice_url") or None,
        invoice=str(invoice["id"]),
        declined=None if is_paid else declined,
    )


_logger = logging.getLogger("meterkit.subscriptions")


class AutoTopUps:
    """Buys automatic top-ups for customers with a low balance who have bought a top-up before.

    Args:
        store: of the kit.
        credits_: sells top-ups.
    """

    def __init__(self, store: Store, credits_: Credits) -> None:
        self._store = store
        self._credits = credits_
        self._throttle = Throttle(24 * HOUR_S)

    async def on_low(self, customer: str, credit: str, event: str) -> None:
        """Buy a top-up because a balance has become low.

        Args:
            customer: the customer's id.
            credit: the credit of the balance.
            event: the id of the event; the same event buys once.

        Raises:
            StripeError: Stripe refuses, or does not answer; call this again.
            StoreError: the store does not answer.
        """
        await self._buy_top_up(customer, credit, f"low {event}")

    async def buy_if_low(self, customer: str) -> None:
        """Buy a top-up if the balance is low: its event may have come while none could be bought."""
        sold = find_top_ups(self._store.catalog.credits)
        if (
            sold is not None
            and sold[1].auto is not None
            and await self._is_low(customer, sold[0], sold[1].auto)
        ):
            await self._buy_top_up(customer, sold[0], f"night {from_ms(self._store.now_ms()):%Y-%m-%d}")

    async def _is_low(self, customer: str, credit: str, auto: AutoTopUp) -> bool:
        usage = await self._store.usage(customer)
        return usage["balance_micros"].get(credit, 0) < auto.below_cents * (MICRO // 100)

    async def _buy_top_up(self, customer: str, credit: str, event: str) -> None:
        sold = self._store.catalog.credits.get(credit)
        auto = None if sold is None or sold.top_up is None else sold.top_up.auto
        if auto is None:
            return
        now_ms = await self._store.clock_ms(self._store.keys.customer(customer).shard)
        month, most = f"{from_ms(now_ms):%Y-%m}", auto.at_most
        started = await move_auto_top_up(
            self._store, customer, credit, "begin", event=event, month=month, most=most
        )
        if started is None:
            return
        event = started[1]
        began = datetime.fromisoformat(f"{started[0]}-01").replace(tzinfo=UTC)
        since_s = int(began.timestamp()) - _DAY_S  # Clocks differ.
        # The same purchase, however often it is started.
        key = f"auto {credit} {' '.join(started)}"
        outcome: AutoTopUpStep = "none"
        try:
            bought = await self._credits.charge(
                customer, auto.amount_cents, key, event=event, since_s=since_s
            )
        except PaymentMethodMissingError:
            if self._throttle.is_due((customer, "no card")):
                _logger.warning("customer %r has no saved card for an automatic top-up", customer)
        except _VoidedError:
            pass  # Another event may begin another.
        else:
            outcome = "paid" if bought.status == "paid" else "failed"
            if outcome == "failed":
                await self._report_failure(customer, credit, bought)
        await move_auto_top_up(self._store, customer, credit, outcome, event=event)
        if outcome == "paid" and await self._is_low(customer, credit, auto):
            # The first top-ups repay a debt. The script limits their number.
            first, _, number = event.partition("+")
            await self._buy_top_up(customer, credit, f"{first}+{int(number or 1) + 1}")

    async def _report_failure(self, customer: str, credit: str, bought: TopUp) -> None:
        reason = bought.declined or "no reason given"
        if self._throttle.is_due((customer, reason)):
            message = "customer %r: an automatic top-up of %s was declined (%s): the next follows a paid one"
            _logger.warning(message, customer, credit, reason)
        data = {
            "id": f"top_up.failed/{bought.invoice}",
            "at_ms": self._store.now_ms(),
            "invoice": bought.invoice,
            "credit": credit,
            "amount_cents": bought.amount_cents,
            "declined": bought.declined or "",
            "url": bought.url or "",
        }
        await publish_notice(self._store, customer, "top_up.failed", data)
