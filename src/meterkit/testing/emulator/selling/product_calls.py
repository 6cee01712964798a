"""The calls about products: create, retrieve, list, update, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.replies import ApiError, JsonObject
from meterkit.testing.emulator.selling.price_calls import make_price, make_product
from meterkit.testing.emulator.selling.price_params import read_price
from meterkit.testing.emulator.selling.products import TEXTS

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call

__all__ = ["PRODUCT_CALLS"]

# Accepted and shown nowhere.
IGNORED: Final = ("images", "marketing_features", "package_dimensions", "shippable", "tax_details")


def _create(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only(
        *("id", "name", "active", "default_price_data", "metadata", "type", *TEXTS, *IGNORED), expandable=None
    )
    data = params.hash("default_price_data")
    given = None if data is None else read_price(data, meters=account.meters)
    product = make_product(account, params, call=call)
    if given is not None:
        product.default_price = make_price(account, given, call=call, product=product).id
    return expanded(account, product.to_json(), params)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, account.products.find(call.object_id).to_json(), call.params)


def _update(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("name", "active", "default_price", "metadata", *TEXTS, *IGNORED, expandable=None)
    product = account.products.find(call.object_id)
    before = product.to_json()
    product.apply(params)
    wanted = params.given("default_price")
    if wanted is not None:
        product.default_price = account.prices.find(wanted, param="default_price").id
    if "name" in params:
        product.name = params.required("name")
    product.updated = int(call.now)
    account.emit("product.updated", product.to_json(), previous=before)
    return expanded(account, product.to_json(), params)


def _delete(account: Account, call: Call) -> JsonObject:
    """Only one that has no price (https://docs.stripe.com/api/products/delete)."""
    call.params.only()
    product = account.products.find(call.object_id)
    if any(price.product == product.id for price in account.prices):
        raise ApiError(
            "This product cannot be deleted because it has one or more user-created prices. Archive it by "
            "setting `active=false` instead."
        )
    account.products.remove(product)
    account.emit("product.deleted", product.to_json())
    return {"id": product.id, "object": "product", "deleted": True}


def _list(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("active", "created", "ids", "shippable", "type", "url", *PAGING, expandable=None)
    active, is_in, ids = params.boolean("active"), params.span("created"), params.listed("ids")
    found = [
        product.to_json()
        for product in reversed(tuple(account.products))
        if active in {None, product.active} and is_in(product.created) and (not ids or product.id in ids)
    ]
    return expanded(account, params.page(found, url="/v1/products"), params)


PRODUCT_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/products", _create),
    ("GET", "/v1/products", _list),
    ("GET", "/v1/products/{id}", _retrieve),
    ("POST", "/v1/products/{id}", _update),
    ("DELETE", "/v1/products/{id}", _delete),
)
