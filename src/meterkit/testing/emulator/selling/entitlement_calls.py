"""The calls about features and entitlements.

https://docs.stripe.com/api/entitlements/feature/create: a lookup key and a name have at most 80 characters.
https://docs.stripe.com/api/product-feature/attach and
https://docs.stripe.com/api/entitlements/active-entitlement/list: what products have, and customers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.protocol import JsonObject, new_id, no_such
from meterkit.testing.emulator.selling.entitlements import Feature, entitlement_to_json

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call

__all__ = ["ENTITLEMENT_CALLS"]

KEY_MAX: Final = 80


def _create(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("lookup_key", "metadata", "name")
    feature = Feature(
        id=new_id("feat_test", length=24),
        lookup_key=params.required("lookup_key", length_max=KEY_MAX),
        name=params.required("name", length_max=KEY_MAX),
        livemode=call.livemode,
    )
    params.amend("metadata", feature.metadata)
    account.features.add(feature)
    return feature.to_json()


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return account.features.find(call.object_id).to_json()


def _update(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("active", "metadata", "name")
    feature = account.features.find(call.object_id)
    params.amend("metadata", feature.metadata)
    active = params.boolean("active")
    feature.active = feature.active if active is None else active
    feature.name = params.given("name") or feature.name
    return feature.to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """Active ones, newest first; with ``archived`` the others."""
    params = call.params
    params.only("archived", "lookup_key", *PAGING)
    archived, key = params.boolean("archived") or False, params.given("lookup_key")
    found = [
        feature.to_json()
        for feature in reversed(tuple(account.features))
        if feature.active is not archived and key in {None, feature.lookup_key}
    ]
    return params.page(found, url="/v1/entitlements/features")


def _attach(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("entitlement_feature")
    product = account.products.find(call.object_id)
    wanted = params.required("entitlement_feature")
    feature = account.features.find(wanted, param="entitlement_feature")
    attachment = new_id("prodft", length=14)
    account.features.attach(product.id, feature, attachment=attachment)
    return _attachment(attachment, feature)


def _attached(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only(*PAGING)
    product = account.products.find(call.object_id)
    found = [_attachment(*each) for each in reversed(account.features.of(product.id).items())]
    return params.page(found, url=f"/v1/products/{product.id}/features")


def _find_attached(account: Account, call: Call) -> JsonObject:
    call.params.only()
    return _attachment(call.inner_id, account.features.attached(call.object_id, call.inner_id))


def _detach(account: Account, call: Call) -> JsonObject:
    account.features.detach(call.object_id, call.inner_id)
    return {"id": call.inner_id, "object": "product_feature", "deleted": True}


def _list_active(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("customer", *PAGING, expandable=("feature",))
    customer = params.required("customer")
    found = [entitlement_to_json(customer, feature) for feature in account.entitlements.active(customer)]
    return params.page(found, url="/v1/entitlements/active_entitlements")


def _find_active(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=("feature",))
    for customer in account.entitlements.customers:
        for feature in account.entitlements.active(customer):
            entitlement = entitlement_to_json(customer, feature)
            if entitlement["id"] == call.object_id:
                return entitlement
    raise no_such("active entitlement", call.object_id)


def _attachment(attachment: str, feature: Feature) -> JsonObject:
    return {
        "id": attachment,
        "object": "product_feature",
        "entitlement_feature": feature.to_json(),
        "livemode": feature.livemode,
    }


ENTITLEMENT_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/entitlements/features", _create),
    ("GET", "/v1/entitlements/features", _list),
    ("GET", "/v1/entitlements/features/{id}", _retrieve),
    ("POST", "/v1/entitlements/features/{id}", _update),
    ("POST", "/v1/products/{id}/features", _attach),
    ("GET", "/v1/products/{id}/features", _attached),
    ("GET", "/v1/products/{id}/features/{inner}", _find_attached),
    ("DELETE", "/v1/products/{id}/features/{inner}", _detach),
    ("GET", "/v1/entitlements/active_entitlements", _list_active),
    ("GET", "/v1/entitlements/active_entitlements/{id}", _find_active),
)
