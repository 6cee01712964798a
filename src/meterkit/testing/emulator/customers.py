"""Customers: create, retrieve, list, update, delete."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.exchange import ApiError, JsonObject, new_id
from meterkit.testing.emulator.lists import page

if TYPE_CHECKING:
    from meterkit.testing.emulator.call import Call
    from meterkit.testing.emulator.params import Params

__all__ = ["Customer", "Customers"]

TEXTS: Final = ("name", "email", "description", "phone")


@dataclass(slots=True, kw_only=True)
class Customer:
    """A Stripe customer. ``created`` is in Unix seconds."""

    id: str
    created: int
    livemode: bool = False
    texts: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(TEXTS))
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    deleted: bool = False

    def to_json(self) -> JsonObject:
        """Return the customer as Stripe shows it; a deleted one is a stump."""
        if self.deleted:
            return {"id": self.id, "object": "customer", "deleted": True}
        return {
            "id": self.id,
            "object": "customer",
            "address": None,
            "balance": 0,
            "created": self.created,
            "currency": None,
            "default_source": None,
            "delinquent": False,
            "discount": None,
            "invoice_prefix": self.id[-8:].upper(),
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "preferred_locales": [],
            "shipping": None,
            "tax_exempt": "none",
            "test_clock": None,
            **self.texts,
        }


class Customers:
    """All customers of the emulated account, by id, oldest first."""

    def __init__(self) -> None:
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
        call.params.only(*TEXTS, "metadata")
        customer = Customer(id=new_id("cus"), created=int(call.now), livemode=call.livemode)
        _apply(customer, params=call.params)
        self._by_id[customer.id] = customer
        return customer.to_json()

    def retrieve(self, call: Call) -> JsonObject:
        """``GET /v1/customers/{id}``; a deleted one is found."""
        call.params.only()
        return self._find(call.object_id).to_json()

    def update(self, call: Call) -> JsonObject:
        """``POST /v1/customers/{id}``."""
        call.params.only(*TEXTS, "metadata")
        customer = self._find(call.object_id, alive=True)
        _apply(customer, params=call.params)
        return customer.to_json()

    def delete(self, call: Call) -> JsonObject:
        """``DELETE /v1/customers/{id}``."""
        customer = self._find(call.object_id, alive=True)
        customer.deleted = True
        return customer.to_json()

    def list(self, call: Call) -> JsonObject:
        """``GET /v1/customers``, newest first."""
        call.params.only("email", "limit", "starting_after", "ending_before")
        email = call.params.text("email")
        found = [
            customer
            for customer in reversed(self._by_id.values())
            if not customer.deleted and email in {None, customer.texts["email"]}
        ]
        return page(found, params=call.params, url="/v1/customers")

    def _find(self, customer_id: str, *, alive: bool = False) -> Customer:
        customer = self._by_id.get(customer_id)
        if customer is None or (alive and customer.deleted):
            raise ApiError(
                f"No such customer: '{customer_id}'",
                status=HTTPStatus.NOT_FOUND,
                code="resource_missing",
                param="id",
            )
        return customer


def _apply(customer: Customer, *, params: Params) -> None:
    for name in TEXTS:
        if name in params:
            customer.texts[name] = params.text(name) or None
    for key, value in params.texts("metadata").items():
        if value:
            customer.metadata[key] = value
        else:
            customer.metadata.pop(key, None)
