"""The calls about products and prices: create, retrieve, list, update, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.object_calls import newest, retrieves
from stripe_emulator.protocol import ApiError, JsonObject, new_id
from stripe_emulator.selling.price_params import PRICE_PARAMS, read_price
from stripe_emulator.selling.prices import TEXTS, Price, Product

if TYPE_CHECKING:
    from stripe_emulator.account import Account, Operation
    from stripe_emulator.call import Call, Params


def make_product(account: Account, params: Params, *, call: Call) -> Product:
    """Add the product that ``params`` describe, and return it."""
    now = int(call.now)
    product = Product(
        id=params.given("id") or new_id("prod"),
        name=params.required("name"),
        created=now,
        updated=now,
        livemode=call.livemode,
    )
    product.apply(params)
    account.products.add(product)
    account.emit("product.created", product.to_json())
    return product


def make_price(account: Account, price: Price, params: Params, *, call: Call, product: Product) -> Price:
    """Add a price that ``params`` describe to a product, and return it.

    Raises:
        ApiError: its lookup key is another's.
        ValueError: the id is taken.
    """
    price.product, price.livemode = product.id, call.livemode
    account.prices.add(price, transfer_lookup_key=params.boolean("transfer_lookup_key", default=False))
    account.emit("price.created", price.to_json())
    return price


def _create(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only(*PRICE_PARAMS, "product", "product_data", expandable=None)
    product_data = params.hash("product_data")
    if ("product" in params) == (product_data is not None):
        message = "You must specify either `product` or `product_data` when creating a price."
        raise ApiError(message, param="product")
    price = read_price(account, params)
    product = (
        account.products.find(params.required("product"), param="product")
        if product_data is None
        else make_product(account, product_data, call=call)
    )
    return make_price(account, price, params, call=call, product=product).to_json()


def _update(account: Account, call: Call) -> JsonObject:
    """What a price costs never changes (https://docs.stripe.com/api/prices/update)."""
    params = call.params
    params.only(
        "active",
        "lookup_key",
        "metadata",
        "nickname",
        "tax_behavior",
        "transfer_lookup_key",
        "currency_options",
        expandable=None,
    )
    price = account.prices.find(call.object_id)
    with account.updating("price.updated", price.to_json):
        params.amend("metadata", price.metadata)
        if "lookup_key" in params:
            price.lookup_key = params.text("lookup_key") or None
            account.prices.claim_lookup_key(price, transfer=params.boolean("transfer_lookup_key") or False)
        price.active = params.boolean("active", default=price.active)
        price.nickname = params.text("nickname") if "nickname" in params else price.nickname
    return price.to_json()


def _list(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/prices/list."""
    params = call.params
    active, keys = params.boolean("active"), params.listed("lookup_keys")
    kind = params.choice("type", ("one_time", "recurring"))
    recurring = params.texts("recurring")
    return newest(
        account.prices,
        call,
        "currency",
        "product",
        also=("active", "lookup_keys", "recurring", "type"),
        where=lambda price: (
            not price.inline
            and active in {None, price.active}
            and (not keys or price.lookup_key in keys)
            and kind in {None, "one_time" if price.recurring is None else "recurring"}
            and _recurs(price, recurring)
        ),
    )


def _recurs(price: Price, wanted: dict[str, str]) -> bool:
    recurring: JsonObject = {} if price.recurring is None else price.recurring.to_json()
    return all(recurring.get(name) == value for name, value in wanted.items())


PRICE_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/prices", _create),
    ("GET", "/v1/prices", _list),
    ("GET", "/v1/prices/{id}", retrieves(lambda account: account.prices)),
    ("POST", "/v1/prices/{id}", _update),
)


# Accepted and shown nowhere.
IGNORED: Final = ("images", "marketing_features", "package_dimensions", "shippable", "tax_details")


def _create_product(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only(
        "id", "name", "active", "default_price_data", "metadata", "type", *TEXTS, *IGNORED, expandable=None
    )
    data = params.hash("default_price_data")
    price = None if data is None else read_price(account, data)
    product = make_product(account, params, call=call)
    if data is not None and price is not None:
        product.default_price = make_price(account, price, data, call=call, product=product).id
    return product.to_json()


def _update_product(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("name", "active", "default_price", "metadata", *TEXTS, *IGNORED, expandable=None)
    product = account.products.find(call.object_id)
    with account.updating("product.updated", product.to_json):
        product.apply(params)
        wanted = params.given("default_price")
        if wanted is not None:
            product.default_price = account.prices.find(wanted, param="default_price").id
        if "name" in params:
            product.name = params.required("name")
        product.updated = int(call.now)
    return product.to_json()


def _list_products(account: Account, call: Call) -> JsonObject:
    active, ids = call.params.boolean("active"), call.params.listed("ids")
    return newest(
        account.products,
        call,
        also=("active", "ids", "shippable", "type", "url"),
        where=lambda product: active in {None, product.active} and (not ids or product.id in ids),
    )


PRODUCT_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/products", _create_product),
    ("GET", "/v1/products", _list_products),
    ("GET", "/v1/products/{id}", retrieves(lambda account: account.products)),
    ("POST", "/v1/products/{id}", _update_product),
)
