"""Customers, their balance entries, and the test clocks that some of them were made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import JsonObject, missing_resource, not_found, shown_fields
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from stripe_emulator.call import Params

CLOCK_LIFE_S: Final = 30 * 86_400


@dataclass(slots=True, kw_only=True)
class TestClock:
    """A test clock.

    Attributes:
        created: Unix seconds of the emulator's own clock.
        frozen_time: Unix seconds; the time of its customers.
        target: where it advances to; None: it stands.
    """

    id: str
    created: int
    frozen_time: int
    name: str | None = None
    target: int | None = None

    def to_json(self) -> JsonObject:
        """Return the clock as Stripe shows it (https://docs.stripe.com/api/test_clocks/object)."""
        details: JsonObject = {}
        if self.target is not None:
            details["advancing"] = {"target_frozen_time": self.target}
        return {
            **shown_fields(self, "target"),
            "object": "test_helpers.test_clock",
            "deletes_after": self.created + CLOCK_LIFE_S,
            "livemode": False,
            "status": "ready" if self.target is None else "advancing",
            "status_details": details,
        }


CLOCK_CUSTOMERS_MAX: Final = 3
CUSTOMER_TEXTS: Final = ("name", "email", "description", "phone")
ADDRESS: Final = ("city", "country", "line1", "line2", "postal_code", "state")
CUSTOMER_EXPANDABLE: Final = (
    "cash_balance",
    "default_source",
    "invoice_credit_balance",
    "sources",
    "subscriptions",
    "tax",
    "tax_ids",
    "test_clock",
)


@dataclass(slots=True, kw_only=True)
class Customer:
    """A Stripe customer.

    Attributes:
        created: Unix seconds.
        currency: that it is charged in, since it was first; None: nothing was charged yet.
        balance: what the next invoice adds, in minor units of the currency; negative: what it takes off.
        default_payment_method: what is charged where a subscription has none of its own.
        default_source: the same of accounts from before payment methods; charged where there is no other.
        clock: whose time it lives in; None: the emulator's own.
    """

    id: str
    created: int
    livemode: bool = False
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(CUSTOMER_TEXTS))
    address: dict[str, str | None] | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    deleted: bool = False
    currency: str | None = None
    balance: int = 0
    preferred_locales: tuple[str, ...] = ()
    default_payment_method: str | None = None
    default_source: str | None = None
    clock: TestClock | None = None
    tax_exempt: str = "none"

    @property
    def test_clock(self) -> str | None:
        """The id of the test clock that it was made with."""
        return None if self.clock is None else self.clock.id

    @property
    def invoice_prefix(self) -> str:
        """The prefix of its invoice numbers."""
        return self.id[-8:].upper()

    @property
    def country(self) -> str | None:
        """The country where it is taxed; None if its address is not known."""
        return None if self.address is None else self.address["country"]

    def to_json(self) -> JsonObject:
        """Return the customer as Stripe shows it; a deleted one has its id only."""
        if self.deleted:
            return {"id": self.id, "object": "customer", "deleted": True}
        return {
            **shown_fields(self, "texts deleted default_payment_method clock"),
            "object": "customer",
            "delinquent": False,
            "invoice_prefix": self.invoice_prefix,
            "invoice_settings": {
                "custom_fields": None,
                "default_payment_method": self.default_payment_method,
                "footer": None,
                "rendering_options": None,
            },
            "preferred_locales": list(self.preferred_locales),
            "test_clock": self.test_clock,
            **dict.fromkeys(("discount", "shipping")),
            **self.texts,
        }


class Customers(ObjectRegistry[Customer]):
    """All customers of the emulated account, oldest first."""

    def exists(self, customer_id: str) -> bool:
        """Return whether there is such a customer that is not deleted."""
        customer = self.get(customer_id)
        return customer is not None and not customer.deleted

    def add(self, added: Customer) -> None:
        """Add a customer. Raises ValueError if its id is taken."""
        if added.id in self:
            raise ValueError(f"there is already a customer {added.id}: choose another id")
        super().add(added)

    def ids_of_clock(self, clock_id: str) -> tuple[str, ...]:
        """Return the ids of the customers of a test clock."""
        return tuple(each.id for each in self if each.test_clock == clock_id and not each.deleted)

    def time_of_customer(self, customer_id: str, *, now: float) -> float:
        """Return a customer's time: its test clock's, or ``now``."""
        customer = self.get(customer_id)
        return now if customer is None or customer.clock is None else customer.clock.frozen_time

    def require_ever_created(self, customer_id: str | None) -> str | None:
        """Return the customer that a list is filtered by. Raises ApiError, 400, if there never was one."""
        if customer_id is not None and customer_id not in self:
            raise missing_resource("customer", customer_id, param="customer")
        return customer_id

    def find_existing(self, customer_id: str) -> Customer:
        """Return a customer. Raises ApiError, 404, if there is none, or it is deleted."""
        customer = self.find(customer_id)
        if customer.deleted:
            raise not_found("customer", customer_id)
        return customer

    def require(self, customer_id: str) -> str:
        """Return the ``customer`` of a call. Raises ApiError, 400, if there is none, or it is deleted."""
        if not self.exists(customer_id):
            raise missing_resource("customer", customer_id, param="customer")
        return customer_id

    def read_param(self, params: Params) -> str | None:
        """Return the ``customer`` that a call may name. Raises ApiError, 400, if there is no such one."""
        given = params.nonempty_text("customer")
        return None if given is None else self.require(given)

    def keep_currency(self, customer_id: str, currency: str) -> None:
        """Give a customer its currency, unless it has one.

        https://support.stripe.com/questions/customer-default-currency: its first subscription, invoice,
        invoice item or balance decides it.
        """
        customer = self.find(customer_id)
        customer.currency = customer.currency or currency

    def clear_default_payment_method(self, customer_id: str, method_id: str) -> None:
        """Clear a payment method as the default."""
        customer = self.find(customer_id)
        if customer.default_payment_method == method_id:
            customer.default_payment_method = None
        if customer.default_source == method_id:
            customer.default_source = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceTransaction:
    """An entry of a customer's balance; ``amount`` is in minor units of the currency, a credit below 0."""

    id: str
    created: int
    customer: str
    amount: int
    currency: str
    ending_balance: int
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> JsonObject:
        """Return the entry as Stripe shows it (https://docs.stripe.com/api/customer_balance_transactions/object)."""
        return {**shown_fields(self), "object": "customer_balance_transaction", "type": "adjustment"}
