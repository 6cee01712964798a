"""Customers: create, retrieve, list, update, delete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.replies import JsonObject, new_id, no_such, unknown_parameter

if TYPE_CHECKING:
    from meterkit.testing.emulator.call import Call, Params
    from meterkit.testing.emulator.events import Emit

__all__ = ["Customer", "Customers"]

TEXTS: Final = ("name", "email", "description", "phone")
ADDRESS: Final = ("city", "country", "line1", "line2", "postal_code", "state")
EXPANDABLE: Final = (
    *("cash_balance", "default_source", "invoice_credit_balance", "sources"),
    *("subscriptions", "tax", "tax_ids", "test_clock"),
)


@dataclass(slots=True, kw_only=True)
class Customer:
    """A Stripe customer. ``created`` is in Unix seconds."""

    id: str
    created: int
    livemode: bool = False
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(TEXTS))
    address: dict[str, str | None] | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    deleted: bool = False

    def to_json(self) -> JsonObject:
        """Return the customer as Stripe shows it; a deleted one is a stump."""
        if self.deleted:
            return {"id": self.id, "object": "customer", "deleted": True}
        return {
            "id": self.id,
            "object": "customer",
            "address": self.address,
            "balance": 0,
            "created": self.created,
            "delinquent": False,
            "invoice_prefix": self.id[-8:].upper(),
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "preferred_locales": [],
            "tax_exempt": "none",
            **dict.fromkeys(("currency", "default_source", "discount", "shipping", "test_clock")),
            **self.texts,
        }


class Customers:
    """All customers of the emulated account, by id, oldest first."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._by_id: dict[str, Customer] = {}

    def exists(self, customer_id: str) -> bool:
        """Tell whether there is such a customer and it is not deleted."""
        customer = self._by_id.get(customer_id)
        return customer is not None and not customer.deleted

    def add(self, customer: Customer) -> None:
        """Take over a customer that was made elsewhere. Raises ValueError if its id is taken."""
        if customer.id in self._by_id:
            raise ValueError(f"there is already a customer {customer.id}: choose another id")
        self._by_id[customer.id] = customer

    def create(self, call: Call) -> JsonObject:
        """``POST /v1/customers``."""
        call.params.only(*TEXTS, "address", "metadata", expandable=EXPANDABLE)
        customer = Customer(id=new_id("cus"), created=int(call.now), livemode=call.livemode)
        _apply(customer, params=call.params)
        self._by_id[customer.id] = customer
        self._emit("customer.created", customer.to_json())
        return customer.to_json()

    def retrieve(self, call: Call) -> JsonObject:
        """``GET /v1/customers/{id}``; a deleted one is found."""
        call.params.only(expandable=EXPANDABLE)
        return self._find(call.object_id).to_json()

    def update(self, call: Call) -> JsonObject:
        """``POST /v1/customers/{id}``."""
        call.params.only(*TEXTS, "address", "metadata", expandable=EXPANDABLE)
        customer = self._find(call.object_id, alive=True)
        before = customer.to_json()
        _apply(customer, params=call.params)
        self._emit("customer.updated", customer.to_json(), previous=before)
        return customer.to_json()

    def delete(self, call: Call) -> JsonObject:
        """``DELETE /v1/customers/{id}``."""
        customer = self._find(call.object_id, alive=True)
        self._emit("customer.deleted", customer.to_json())
        customer.deleted = True
        return customer.to_json()

    def list(self, call: Call) -> JsonObject:
        """``GET /v1/customers``, newest first."""
        call.params.only("email", "created", *PAGING, expandable=EXPANDABLE)
        is_in = call.params.span("created")
        email = call.params.text("email")
        found = [
            customer.to_json()
            for customer in reversed(self._by_id.values())
            if not customer.deleted and email in {None, customer.texts["email"]} and is_in(customer.created)
        ]
        return call.params.page(found, url="/v1/customers")

    def _find(self, customer_id: str, *, alive: bool = False) -> Customer:
        customer = self._by_id.get(customer_id)
        if customer is None or (alive and customer.deleted):
            raise no_such("customer", customer_id)
        return customer


def _apply(customer: Customer, *, params: Params) -> None:
    for name in TEXTS:
        if name in params:
            customer.texts[name] = params.text(name) or None
    if "address" in params:
        given = params.texts("address")
        for name in given.keys() - set(ADDRESS):
            raise unknown_parameter(f"address[{name}]")
        known = customer.address or dict.fromkeys(ADDRESS)
        customer.address = {name: given.get(name, known[name]) or None for name in ADDRESS}
    for key, value in params.texts("metadata").items():
        if value:
            customer.metadata[key] = value
        else:
            customer.metadata.pop(key, None)
