"""The calls about checkout sessions: create, retrieve, list, line items, expire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.call import PAGING
from meterkit.testing.emulator.expand import expanded
from meterkit.testing.emulator.pages.checkout import line_items
from meterkit.testing.emulator.pages.checkout_params import read_session
from meterkit.testing.emulator.replies import ApiError, JsonObject

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call

__all__ = ["CHECKOUT_CALLS"]


def _create(account: Account, call: Call) -> JsonObject:
    session = read_session(account, call)
    account.checkouts.add(session)
    return expanded(account, session.to_json(), call.params)


def _retrieve(account: Account, call: Call) -> JsonObject:
    call.params.only(expandable=None)
    return expanded(account, account.checkouts.find(call.object_id).to_json(), call.params)


def _list(account: Account, call: Call) -> JsonObject:
    """Newest first (https://docs.stripe.com/api/checkout/sessions/list)."""
    params = call.params
    params.only("created", "customer", "status", "subscription", *PAGING, expandable=None)
    is_in, customer = params.span("created"), params.given("customer")
    status = params.choice("status", ("open", "complete", "expired"))
    subscription = params.given("subscription")
    found = [
        session.to_json()
        for session in reversed(tuple(account.checkouts))
        if is_in(session.created)
        and customer in {None, session.customer}
        and status in {None, session.status}
        and subscription in {None, session.subscription}
    ]
    return expanded(account, params.page(found, url="/v1/checkout/sessions"), params)


def _line_items(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only(*PAGING, expandable=None)
    session = account.checkouts.find(call.object_id)
    items = line_items(session, prices=account.prices, products=account.products)
    page = params.page(items, url=f"/v1/checkout/sessions/{session.id}/line_items")
    return expanded(account, page, params)


def _expire(account: Account, call: Call) -> JsonObject:
    """Only an open one (https://docs.stripe.com/api/checkout/sessions/expire)."""
    call.params.only(expandable=None)
    session = account.checkouts.find(call.object_id)
    if session.status != "open":
        raise ApiError(
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a '
            f"status of `{session.status}`."
        )
    account.checkouts.expire(session, at_s=call.now)
    return expanded(account, session.to_json(), call.params)


CHECKOUT_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/checkout/sessions", _create),
    ("GET", "/v1/checkout/sessions", _list),
    ("GET", "/v1/checkout/sessions/{id}", _retrieve),
    ("GET", "/v1/checkout/sessions/{id}/line_items", _line_items),
    ("POST", "/v1/checkout/sessions/{id}/expire", _expire),
)
