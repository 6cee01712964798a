"""Start a subscription at Stripe, directly or on a page; refuse debtors and duplicates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.catalog.meters import is_sold
from meterkit.customers.states import CustomerStates, in_its_currency
from meterkit.decisions.customer_overrides import overrides_at
from meterkit.decisions.periods import DAY_MS, from_ms
from meterkit.decisions.subscription import ENDED, NOT_BEGUN
from meterkit.errors import CurrencyError, InvoiceOpenError, SubscriptionError, SubscriptionExistsError
from meterkit.outbox.meters_or_lines import CUSTOMER_KEY, is_usage_invoice
from meterkit.stripe.idempotency_keys import key_of
from meterkit.subscriptions.billing_currency import choose_currency, name_requested, read_billed_currency
from meterkit.subscriptions.change_rules import check_addons, repeats_tiers
from meterkit.subscriptions.item_changes import are_of, items_of, new_items, trial_settings
from meterkit.subscriptions.override_prices import customer_prices
from meterkit.subscriptions.payment_method_gate import SIGN_UP, PaymentMethodGate
from meterkit.subscriptions.service.payment_pages import close_pages, open_page, refuse_without_method
from meterkit.subscriptions.service.results import Checkout
from meterkit.subscriptions.service.stripe_customers import StripeCustomers, has_used_trial
from meterkit.subscriptions.stripe_objects import (
    AWAITS_METHOD,
    CHANGE_MARK,
    SECRETS,
    has_subscription_method,
    id_in,
    mark_of,
    part_of,
    secret_of,
    text_in,
)
from meterkit.subscriptions.subscription_reading import has_begun, is_sold_here
from meterkit.subscriptions.subscription_updates import FLEXIBLE, end_unpaid, with_all_items
from meterkit.terms.cuts import cuts_of
from meterkit.terms.rows import PLAN, in_force

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Catalog, Plan
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter
    from meterkit.subscriptions.item_changes import PlanPrices
    from meterkit.subscriptions.service.stripe_customers import ContactSource


_REFERENCE_MAX: Final = 200
_PATH: Final = "/v1/subscriptions"


class SubscriptionStarter:
    """Starts subscriptions of customers without an active one.

    Args:
        store: of the kit.
        api: makes the Stripe client on first use.
        contact: provides the contact of a new Stripe customer.
    """

    def __init__(
        self, store: Store, api: Callable[[], StripeApi], contact: ContactSource | None = None
    ) -> None:
        self._store = store
        self._stripe_customers = StripeCustomers(store, api, contact)
        self._states = CustomerStates(store)
        self._gate = PaymentMethodGate(api)
        self._api = api

    async def create(
        self, customer: str, plan: Plan, paid_seats: int, currency: str | None = None
    ) -> str | None:
        """Create a subscription; return the client secret that pays for it or saves its card, or None."""
        shown, offer, items, found = await self._prepare_sign_up(customer, plan, paid_seats, currency)
        linked, had_trial = str(shown["id"]), await has_used_trial(self._store, customer)
        params = _subscription_params(linked, plan, items, found, had_trial=had_trial)
        params |= self._currency_params(offer)
        if "trial_period_days" in params and plan.bought:
            check_addons(dict(plan.bought), offer.plans[plan.key], offer, is_trial=True)
            if plan.payment_method == "required" and not await self._gate.has_saved_method(shown):
                why = f"plan {plan.key!r} requires a payment method for add-ons in its trial"
                await refuse_without_method(self._store, self._api(), linked, why)
        try:
            made = await self._find_or_create(customer, linked, plan, params, found)
        except CurrencyError as error:
            raise name_requested(error, customer, offer.currency) from error
        if made["status"] == "active":
            (made,), _ = await self._gate.apply(linked, [made], self._store.catalog, None)
        if made.get(AWAITS_METHOD):
            return await self._gate.find_setup_secret(linked, made)
        return None if has_subscription_method(made) else secret_of(made)

    async def _find_or_create(
        self,
        customer: str,
        linked: str,
        plan: Plan,
        params: Mapping[str, Parameter],
        found: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        """Find the subscription that was created before for the same request, or create it.

        Args:
            customer: the customer's id.
            linked: the Stripe customer.
            plan: its plan.
            params: of the subscription.
            found: the subscriptions of the Stripe customer.
        """
        api, items = self._api(), cast("Sequence[Mapping[str, Parameter]]", params["items"])
        mark = SIGN_UP if plan.payment_method == "required" else "create"
        key = key_of(mark, params, sorted(one["id"] for one in found))

        async def find_mine() -> dict[str, Any] | None:
            listed = await self._list_subscriptions(customer, linked)
            mine = (one for one in listed if mark_of(one) == key and one["status"] not in ENDED)
            return next(mine, None)

        await self._refuse_in_force(customer, found)
        await self._refuse_debtor(customer, linked, found)
        await self._refuse_repeated_tiers(customer, plan)
        for waiting in self._find_unpaid(found):
            if are_of(items_of(waiting), items):
                return waiting
            await end_unpaid(api, waiting)
        await close_pages(api, linked)  # Otherwise another one could be started there.
        metadata = {CUSTOMER_KEY: customer, CHANGE_MARK: key}
        asked: dict[str, Parameter] = {**params, "metadata": metadata, "expand": list(SECRETS)}
        return await api.post(_PATH, asked, idempotency_key=key, find=find_mine)

    async def checkout(
        self,
        customer: str,
        plan: Plan,
        paid_seats: int,
        options: Mapping[str, Any],
        currency: str | None = None,
    ) -> Checkout:
        """Open a page where the customer subscribes, or find the open one for the same request."""
        api = self._api()
        shown, offer, items, found = await self._prepare_sign_up(customer, plan, paid_seats, currency)
        linked = str(shown["id"])
        await self._refuse_in_force(customer, found)
        await self._refuse_debtor(customer, linked, found)
        await self._refuse_repeated_tiers(customer, plan)
        for waiting in self._find_unpaid(found):  # Otherwise both could be paid.
            await end_unpaid(api, waiting)
        data: dict[str, Parameter] = {
            **(options.get("subscription_data") or {}),
            "metadata": {CUSTOMER_KEY: customer},
            **FLEXIBLE,
            **_trial_params(plan, found, had_trial=await has_used_trial(self._store, customer)),
        }
        is_trial = "trial_period_days" in data
        check_addons(dict(plan.bought), offer.plans[plan.key], offer, is_trial=is_trial)
        asked: dict[str, Parameter] = {
            **options,
            "mode": "subscription",
            "customer": linked,
            "client_reference_id": customer if len(customer) <= _REFERENCE_MAX else None,
            "line_items": items,
            "subscription_data": data,
            **self._currency_params(offer),
        }
        if plan.payment_method == "required" and (plan.bought or not is_trial):
            # By default Stripe asks for no card if nothing is due.
            asked["payment_method_collection"] = "always"
        before = [one["id"] for one in found]
        try:
            made = await open_page(api, asked, before, now_s=self._store.now_ms() // 1000)
        except CurrencyError as error:
            raise name_requested(error, customer, offer.currency) from error
        return Checkout(id=made["id"], url=made["url"])

    async def _prepare_sign_up(
        self, customer: str, plan: Plan, paid_seats: int, requested: str | None
    ) -> tuple[Mapping[str, Any], Catalog, list[dict[str, Any]], list[dict[str, Any]]]:
        """Prepare a new subscription; make the Stripe customer if there is none.

        Args:
            customer: the customer's id.
            plan: its plan.
            paid_seats: beyond those of the plan.
            requested: the currency that was requested; None: none was.

        Returns:
            The Stripe customer as Stripe shows it, the plans file in the currency, the items to sell, and the
            subscriptions of the Stripe customer.

        Raises:
            CurrencyError: the customer is billed in another one.
        """
        shown, catalog = await self._stripe_customers.fetch_or_create(customer), self._store.catalog
        found = await self._list_subscriptions(customer, str(shown["id"]))
        offer = catalog
        if len(catalog.currencies) > 1 or requested is not None:
            billed = await read_billed_currency(self._api(), catalog, found, shown)
            offer = catalog.in_currency(choose_currency(customer, billed, requested, catalog))
        items = new_items(await self._read_prices(customer, offer, plan), paid_seats, plan.bought)
        return shown, offer, items, found

    def _currency_params(self, offer: Catalog) -> dict[str, Parameter]:
        """Parameter that chooses among the currencies of a price."""
        return {} if len(self._store.catalog.currencies) == 1 else {"currency": offer.currency}

    async def _read_prices(self, customer: str, offer: Catalog, plan: Plan) -> PlanPrices:
        """Read the prices of a plan in a currency, with those of the customer's overrides."""
        _, state = await self._states.read(customer)
        state = in_its_currency(state, replace(state, currency=offer.currency), self._store.catalog)
        given = overrides_at(state.overrides, self._store.now_ms()).meters
        return await customer_prices(self._api(), offer, offer.plans[plan.key], given)

    async def _list_subscriptions(self, customer: str, linked: str) -> list[dict[str, Any]]:
        """List all subscriptions of a Stripe customer, ended ones too, as the gate shows them."""
        expand = [f"data.{name}" for name in SECRETS]
        api = self._api()
        found = await api.list(_PATH, {"customer": linked, "status": "all", "expand": expand})
        listed = [await with_all_items(api, one) for one in found]
        _, state = await self._states.read(customer)
        return (await self._gate.apply(linked, listed, self._store.catalog, state.subscription)).found

    async def _refuse_in_force(self, customer: str, found: Sequence[Mapping[str, Any]]) -> None:
        """Raise SubscriptionExistsError; the stored one counts even if the plans file lost its price."""
        _, state = await self._states.read(customer)
        known = None if state.subscription is None else state.subscription.id
        for one in found:
            if one["status"] not in ENDED | NOT_BEGUN and (self._is_ours(one) or one["id"] == known):
                raise SubscriptionExistsError(customer, subscription=one["id"], status=one["status"])

    async def _refuse_debtor(self, customer: str, linked: str, found: Sequence[Mapping[str, Any]]) -> None:
        """Raise InvoiceOpenError while an invoice of an earlier subscription is open.

        Stripe does not: it cancels a subscription after its last retry, and leaves the invoice open
        (https://docs.stripe.com/billing/subscriptions/overview#unpaid-subscriptions). Paid, voided and
        uncollectible invoices are no debt, nor is the invoice of a sign-up that was never paid for.
        """
        ended = (one for one in found if one["status"] in ENDED and has_begun(one) and self._is_ours(one))
        old = {str(one["id"]): 1000 * int(one.get("ended_at") or 0) for one in ended}
        if self._store.catalog.dunning.debt == "allow" or not old:
            return
        invoices = await self._api().list("/v1/invoices", {"customer": linked, "status": "open"})
        owed = [one for one in invoices if one["amount_remaining"] > 0 and _is_of(one, old)]
        if owed:
            oldest = owed[-1]  # Stripe lists the newest first.
            message = (
                f"customer {customer!r} owes invoice {oldest['id']} of an earlier subscription: it must be"
                " paid first; to allow one anyway, void it at Stripe or mark it uncollectible"
            )
            url = text_in(oldest, "hosted_invoice_url") or None
            raise InvoiceOpenError(message, invoice=str(oldest["id"]), url=url)

    async def _refuse_repeated_tiers(self, customer: str, plan: Plan) -> None:
        """Raise SubscriptionError if the tiers of a price began in a period that was cut short unpaid."""
        _, state = await self._states.read(customer)
        plans, now_ms = self._store.catalog.plans, self._store.now_ms()
        unpaid = (one for one in cuts_of(state.terms) if not one.is_paid and now_ms < one.end_ms)
        if (cut := next(unpaid, None)) is None:
            return
        since_ms = now_ms - (cut.end_ms - cut.start_ms)
        edges_ms = (since_ms, *(row.since_ms for row in state.terms if since_ms < row.since_ms))
        had = {in_force(state.terms, at_ms)[PLAN] for at_ms in edges_ms} & plans.keys()
        if repeats_tiers(filter(is_sold, map(plans.__getitem__, had)), plan, self._store.catalog.meters):
            end = f"{from_ms(cut.end_ms):%Y-%m-%d %H:%M} UTC"
            raise SubscriptionError(
                f"plan {plan.key!r} bills usage by tiers (`report: usage`), and customer {customer!r} has"
                " ended a subscription whose tiers began in a period until"
                f" {end} and whose rest was not paid: subscribe to it"
                " from then on",
                advice=f"This plan can be subscribed to again from {end} on.",
            )

    def _find_unpaid(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Find subscriptions that wait for their first payment, or for a payment method."""
        return [one for one in found if one["status"] == "incomplete" and self._is_ours(one)]

    def _is_ours(self, found: Mapping[str, Any]) -> bool:
        """Whether a subscription has a plan of the plans file."""
        return is_sold_here(found, self._store.catalog)


def _subscription_params(
    linked: str,
    plan: Plan,
    items: Sequence[Mapping[str, Parameter]],
    found: Sequence[Mapping[str, Any]],
    *,
    had_trial: bool,
) -> dict[str, Parameter]:
    return {
        "customer": linked,
        "items": list(items),
        "payment_behavior": "default_incomplete",
        "payment_settings": {"save_default_payment_method": "on_subscription"},
        **FLEXIBLE,
        **_trial_params(plan, found, had_trial=had_trial),
    }


def _trial_params(plan: Plan, found: Sequence[Mapping[str, Any]], *, had_trial: bool) -> dict[str, Parameter]:
    """Trial parameters of a plan, for a customer's first subscription, in days rounded up."""
    if plan.trial_ms is None or had_trial or any(map(has_begun, found)):
        return {}
    return {"trial_period_days": plan.trial_ms // DAY_MS, **trial_settings(plan)}


def _is_of(invoice: Mapping[str, Any], ended: Mapping[str, int]) -> bool:
    """Whether an invoice bills one of some subscriptions that ended at some instants (ms).

    An invoice of meterkit's own for the last usage names none.
    """
    return _subscription_of(invoice) in ended or any(is_usage_invoice(invoice, at) for at in ended.values())


def _subscription_of(invoice: Mapping[str, Any]) -> str:
    """The subscription of an invoice; before 2025-03-31.basil it was a field of the invoice itself."""
    details = part_of(part_of(invoice, "parent"), "subscription_details")
    return id_in(details, "subscription") or id_in(invoice, "subscription")
