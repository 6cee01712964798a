"""Customers, their balance entries, and the test clocks that some of them were made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import (
    ApiError,
    JsonObject,
    missing_resource,
    new_id,
    not_found,
    shown_fields,
    unknown_parameter,
)
from stripe_emulator.registry import ObjectRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from stripe_emulator.call import Call, Params
    from stripe_emulator.payment_methods import PaymentMethods

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
CUSTOMER_PARAMS: Final = "address balance preferred_locales tax_exempt"
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
        balance: what the next invoice adds, in minor units of the currency; negative: what it takes off.
        default_payment_method: what is charged where a subscription has none of its own.
        clock: whose time it lives in; None: the emulator's own.
    """

    id: str
    created: int
    livemode: bool = False
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(CUSTOMER_TEXTS))
    address: dict[str, str | None] | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    deleted: bool = False
    balance: int = 0
    preferred_locales: tuple[str, ...] = ()
    default_payment_method: str | None = None
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
            **dict.fromkeys(("currency", "default_source", "discount", "shipping")),
            **self.texts,
        }


class Customers(ObjectRegistry[Customer]):
    """All customers of the emulated account, oldest first."""

    def __init__(
        self, emit: Callable[..., object], payment_methods: PaymentMethods, clocks: ObjectRegistry[TestClock]
    ) -> None:
        super().__init__("customer")
        self._emit = emit
        self._clocks = clocks
        self._payment_methods = payment_methods

    def exists(self, customer_id: str) -> bool:
        """Return whether there is such a customer that is not deleted."""
        customer = self.get(customer_id)
        return customer is not None and not customer.deleted

    def add(self, added: Customer) -> None:
        """Add a customer. Raises ValueError if its id is taken."""
        if added.id in self:
            raise ValueError(f"there is already a customer {added.id}: choose another id")
        super().add(added)

    def create(self, call: Call) -> JsonObject:
        """``POST /v1/customers``."""
        call.params.only(
            "invoice_settings metadata payment_method test_clock",
            *CUSTOMER_TEXTS,
            CUSTOMER_PARAMS,
            expandable=CUSTOMER_EXPANDABLE,
        )
        clock = self._clock(call.params)
        customer = Customer(id=new_id("cus"), created=int(call.now), livemode=call.livemode, clock=clock)
        _apply_params(customer, params=call.params)
        given = call.params.nonempty_text("payment_method")
        if given is not None:
            self._payment_methods.attach(given, customer=customer.id, now=customer.created)
        self._set_default(customer, call.params)
        self.add(customer)
        self._emit("customer.created", customer.to_json())
        return customer.to_json()

    def update(self, call: Call) -> JsonObject:
        """``POST /v1/customers/{id}``."""
        call.params.only(
            "invoice_settings metadata", *CUSTOMER_TEXTS, CUSTOMER_PARAMS, expandable=CUSTOMER_EXPANDABLE
        )
        customer = self.find_existing(call.object_id)
        before = customer.to_json()
        _apply_params(customer, params=call.params)
        self._set_default(customer, call.params)
        self._emit("customer.updated", customer.to_json(), previous=before)
        return customer.to_json()

    def delete(self, deleted: Customer) -> None:
        """Mark a customer as deleted: it can still be retrieved."""
        self._emit("customer.deleted", deleted.to_json())
        deleted.deleted = True

    def ids_of_clock(self, clock_id: str) -> tuple[str, ...]:
        """Return the ids of the customers of a test clock."""
        return tuple(each.id for each in self if each.test_clock == clock_id and not each.deleted)

    def time_of_customer(self, customer_id: str, *, now: float) -> float:
        """Return a customer's time: its test clock's, or ``now``."""
        customer = self.get(customer_id)
        return now if customer is None or customer.clock is None else customer.clock.frozen_time

    def _clock(self, params: Params) -> TestClock | None:
        """Return the test clock; at most three customers each (https://docs.stripe.com/billing/testing/test-clocks)."""
        named = params.nonempty_text("test_clock")
        if named is None:
            return None
        clock = self._clocks.find(named, param="test_clock")
        if len(self.ids_of_clock(clock.id)) >= CLOCK_CUSTOMERS_MAX:
            message = f"A test clock can have at most {CLOCK_CUSTOMERS_MAX} customers."
            raise ApiError(message, param="test_clock")
        return clock

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

    def clear_default_payment_method(self, customer_id: str, method_id: str) -> None:
        """Clear a payment method as the default."""
        customer = self.find(customer_id)
        if customer.default_payment_method == method_id:
            customer.default_payment_method = None

    def _set_default(self, customer: Customer, params: Params) -> None:
        """https://docs.stripe.com/api/customers/update#update_customer-invoice_settings."""
        settings = params.hash("invoice_settings")
        if settings is None or "default_payment_method" not in settings:
            return
        wanted = settings.text("default_payment_method") or None
        if wanted is not None:
            name = "invoice_settings[default_payment_method]"
            wanted = self._payment_methods.find_of_customer(wanted, customer=customer.id, param=name).id
        customer.default_payment_method = wanted


def _apply_params(customer: Customer, *, params: Params) -> None:
    params.update_metadata("metadata", customer.metadata)
    customer.texts = {name: params.text_or(name, known) for name, known in customer.texts.items()}
    if "address" in params:
        given = params.texts("address")
        for name in given.keys() - set(ADDRESS):
            raise unknown_parameter(f"address[{name}]")
        known = customer.address or dict.fromkeys(ADDRESS)
        customer.address = {name: given.get(name, known[name]) or None for name in ADDRESS}
    if "preferred_locales" in params:
        is_list = params.is_hash("preferred_locales")
        customer.preferred_locales = tuple(params.listed("preferred_locales")) if is_list else ()
    customer.tax_exempt = params.choice("tax_exempt", ("none", "exempt", "reverse")) or customer.tax_exempt
    balance = params.integer("balance")
    customer.balance = customer.balance if balance is None else balance


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
