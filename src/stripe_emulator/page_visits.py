"""Actions of a person on hosted pages: pays a checkout, cancels or resumes a subscription in the portal."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from urllib.parse import urlencode

from stripe_emulator.call import Params
from stripe_emulator.faults import refuse_unknown_choice
from stripe_emulator.invoice_drafts import new_one_time_draft, one_time_line
from stripe_emulator.invoice_lifecycle import finalize_invoice, mark_paid
from stripe_emulator.protocol import ApiError, JsonObject
from stripe_emulator.redemption import read_discounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stripe_emulator.account import Account
    from stripe_emulator.api import ApiServer
    from stripe_emulator.coupons import Discount
    from stripe_emulator.page_sessions import CheckoutSession, PortalSession

Payment = Literal["succeeds", "fails"]

PortalAction = Literal["cancel", "resume", "mend_payment", "pay"]

DEFAULT_EMAIL = "person@example.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class PageVisitor:
    """The entries of a person on a checkout page; None: left empty.

    Attributes:
        country: two letters.
    """

    email: str | None = None
    name: str | None = None
    country: str | None = None
    promotion_code: str | None = None


class PageVisits:
    """The actions of a person on hosted pages. The caller holds the account's lock."""

    def __init__(self, account: Account, api: ApiServer) -> None:
        self._account = account
        self._api = api

    def complete(
        self, session: CheckoutSession, person: PageVisitor, *, payment: Payment = "succeeds"
    ) -> None:
        """Complete a checkout: create its customer, card and subscription, and pay.

        A card that is declined leaves all as it was, for another attempt.

        Raises:
            ValueError: if the session is not open, or the payment fails because the customer's do.
        """
        if session.status != "open":
            raise ValueError(
                f"checkout session {session.id} is {session.status}: only an open one can be paid"
            )
        refuse_unknown_choice("payment", payment, get_args(Payment))
        if payment == "fails":
            return
        if person.promotion_code is not None:
            session.discounts = [self._read_promotion_code(session, person.promotion_code)]
        self._save_visitor(session, person)
        customer = session.customer or ""
        card: dict[str, str] = {}
        if session.payment_method_collection == "always" or session.totals.total:
            card = {"default_payment_method": self._attach_card(customer)}
        if session.mode == "payment":
            self._pay_once(session, customer)
        else:
            made = self._post_call("/v1/subscriptions", self._subscription_fields(session) | card)
            session.subscription = str(made["id"])
            invoice = made.get("latest_invoice")
            session.invoice = None if invoice is None else str(invoice)
        session.status = "complete"
        session.payment_status = "paid" if session.totals.total else "no_payment_required"
        self._account.emit("checkout.session.completed", session.to_json())

    def _pay_once(self, session: CheckoutSession, customer: str) -> None:
        """Pay for the session's lines; create an invoice afterwards if the session requests one.

        https://docs.stripe.com/payments/checkout/receipts#paid-invoices
        """
        made = new_one_time_draft(
            self._account, customer, currency=session.currency, livemode=session.livemode
        )
        sold = (self._account.prices.find(line.price) for line in session.lines)
        prices = [price.in_currency(session.currency) for price in sold]
        self._account.customers.keep_currency(customer, session.currency)
        made.lines = [
            one_time_line(self._account, price, Decimal(line.quantity or 1))
            for price, line in zip(prices, session.lines, strict=True)
        ]
        made.discounts, made.tax_percent = session.discounts, session.tax_percent
        made.metadata = dict(session.invoice_metadata or {})
        if session.invoice_metadata is not None:
            self._account.invoices.add(made)
            session.invoice = made.id
            finalize_invoice(self._account, made)
            mark_paid(self._account, made)
            session.payment_intent = made.payment_intent
        if not session.saves_card:
            for method in self._account.payment_methods.list_of_customer(customer)[:1]:
                method.customer = None

    def _save_visitor(self, session: CheckoutSession, person: PageVisitor) -> None:
        """Save a person's entries: for a new customer, or if the session allows it.

        "If the Customer already has a valid email set, the email will be prefilled and not editable"; else
        the one given is saved (https://docs.stripe.com/api/checkout/sessions/create). Name and address are
        where ``customer_update`` says so.
        """
        known = None if session.customer is None else self._account.customers.find(session.customer)
        own_email = None if known is None else known.texts["email"]
        session.email = own_email or session.customer_email or person.email or DEFAULT_EMAIL
        session.name = person.name
        country = person.country or ("US" if session.automatic_tax else None)
        if known is not None and known.country and "address" not in session.customer_update:
            country = known.country
        session.address = None if country is None else {"country": country}
        fields = {"email": session.email} if own_email is None else {}
        if person.name is not None and (known is None or "name" in session.customer_update):
            fields["name"] = person.name
        if country is not None and (known is None or "address" in session.customer_update):
            fields["address[country]"] = country
        if session.customer is None:
            session.customer = str(self._post_call("/v1/customers", fields)["id"])
        elif fields:
            self._post_call(f"/v1/customers/{session.customer}", fields)
        if session.automatic_tax:
            session.tax_percent = self._account.behaviour.tax_percent

    def _read_promotion_code(self, session: CheckoutSession, text: str) -> Discount:
        """Return the discount of an entered promotion code."""
        if not session.allow_promotion_codes:
            raise ValueError(f"checkout session {session.id} takes no promotion codes")
        listed = self._api.perform("GET", "/v1/promotion_codes", {"code": text, "active": "true"})
        codes = [str(each["id"]) for each in cast("list[dict[str, Any]]", listed["data"])]
        if not codes:
            raise ValueError(f"{text!r} is no promotion code that is active")
        params = Params(urlencode({"discounts[0][promotion_code]": codes[0]}))
        try:
            (found,) = read_discounts(
                self._account,
                params,
                customer=session.customer or "",
                currency=session.currency,
                amount=sum(line.amount for line in session.lines),
            )
        except ApiError as error:
            raise ValueError(str(error)) from error
        return found

    def use_portal(self, session: PortalSession, action: PortalAction, *, subscription: str | None) -> None:
        """Perform an action on the page of a portal session.

        Raises:
            ValueError: if there is no such action or subscription, or Stripe would refuse it.
        """
        refuse_unknown_choice("action", action, get_args(PortalAction))
        if action == "mend_payment":
            self._account.payment_methods.failing.discard(session.customer)
            card = self._attach_card(session.customer)
            default = {"invoice_settings[default_payment_method]": card}
            self._post_call(f"/v1/customers/{session.customer}", default)
            for each in self._subscription_ids(session.customer):
                self._post_call(f"/v1/subscriptions/{each}", {"default_payment_method": card})
        elif action == "pay":
            for invoice in self._account.invoices:
                if invoice.customer == session.customer and invoice.status == "open":
                    self._post_call(f"/v1/invoices/{invoice.id}/pay", {})
        else:
            # Flexible billing sets `cancel_at` there, and not `cancel_at_period_end`:
            # https://docs.stripe.com/billing/subscriptions/billing-mode/compare#scheduled-subscription-cancellation
            ends = "max_period_end" if action == "cancel" else ""
            named = self._find_subscription(session, subscription)
            if self._account.subscriptions.find(named).billing_mode.is_classic:
                self._post_call(
                    f"/v1/subscriptions/{named}", {"cancel_at_period_end": str(bool(ends)).lower()}
                )
            else:
                self._post_call(f"/v1/subscriptions/{named}", {"cancel_at": ends})

    def subscriptions(self, session: PortalSession) -> list[tuple[str, str, bool]]:
        """Return a customer's subscriptions: id, text, and whether it ends with its period."""
        shown: list[tuple[str, str, bool]] = []
        for each in self._account.subscriptions:
            if each.id in self._subscription_ids(session.customer):
                names = [self._account.products.find(item.price.product).name for item in each.items]
                text = f"{', '.join(dict.fromkeys(names))} ({each.status})"
                shown.append((each.id, text, each.cancel_at is not None))
        return shown

    def _subscription_fields(self, session: CheckoutSession) -> dict[str, str]:
        fields = {"customer": session.customer or "", **session.subscription_data}
        fields["currency"] = session.currency
        # Checkout begins no unpaid subscription.
        fields["payment_behavior"] = "error_if_incomplete"
        if session.automatic_tax:
            fields["automatic_tax[enabled]"] = "true"
        for place, discount in enumerate(session.discounts):
            code = discount.promotion_code
            name, named = ("coupon", discount.coupon.id) if code is None else ("promotion_code", code)
            fields[f"discounts[{place}][{name}]"] = named
        for place, line in enumerate(session.lines):
            fields[f"items[{place}][price]"] = line.price
            if line.quantity is not None:
                fields[f"items[{place}][quantity]"] = str(line.quantity)
        return fields

    def _attach_card(self, customer: str) -> str:
        return str(self._post_call("/v1/payment_methods/pm_card_visa/attach", {"customer": customer})["id"])

    def _find_subscription(self, session: PortalSession, named: str | None) -> str:
        found = self._subscription_ids(session.customer)
        wanted = named or session.subscription
        if wanted is not None and wanted in found:
            return wanted
        if wanted is None and len(found) == 1:
            return found[0]
        theirs = ", ".join(found) or "none"
        raise ValueError(
            f"the subscription to change is {wanted!r}; customer {session.customer} has {theirs}"
        )

    def _subscription_ids(self, customer: str) -> list[str]:
        listed = self._api.perform("GET", "/v1/subscriptions", {"customer": customer, "limit": "100"})
        return [str(each["id"]) for each in cast("list[dict[str, Any]]", listed["data"])]

    def _post_call(self, path: str, form: Mapping[str, str]) -> JsonObject:
        try:
            return self._api.perform("POST", path, form)
        except ApiError as error:
            raise ValueError(str(error)) from error
