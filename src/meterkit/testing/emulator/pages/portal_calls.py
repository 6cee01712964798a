"""The call about customer portal sessions: create.

https://docs.stripe.com/api/customer_portal/sessions/create.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.pages.portal import CONFIGURATION, FLOWS, PortalSession
from meterkit.testing.emulator.replies import (
    ApiError,
    JsonObject,
    missing_parameter,
    missing_resource,
    new_id,
)

if TYPE_CHECKING:
    from meterkit.testing.emulator.account import Account, Operation
    from meterkit.testing.emulator.call import Call, Params

__all__ = ["PORTAL_CALLS"]

# Accepted and shown nowhere.
IGNORED: Final = ("after_expiration", "locale", "on_behalf_of")


def _create(account: Account, call: Call) -> JsonObject:
    params = call.params
    params.only("customer", "return_url", "configuration", "flow_data", *IGNORED)
    customer = params.required("customer")
    if not account.customers.exists(customer):
        raise missing_resource("customer", customer, param="customer")
    return_url = params.given("return_url")
    if return_url is not None and not return_url.startswith(("http://", "https://")):
        raise ApiError("Not a valid URL", code="url_invalid", param="return_url")
    flow, subscription = _flow(params.hash("flow_data"))
    session_id = new_id("bps_1", length=23)
    session = PortalSession(
        id=session_id,
        created=int(call.now),
        customer=customer,
        url=f"{call.base_url}/p/session/{session_id}",
        return_url=return_url,
        livemode=call.livemode,
        configuration=params.given("configuration") or CONFIGURATION,
        flow=flow,
        subscription=subscription,
    )
    account.portals.add(session)
    return session.to_json()


def _flow(data: Params | None) -> tuple[str | None, str | None]:
    """What a page is opened for, and the subscription that this is about."""
    if data is None:
        return None, None
    data.only("type", "after_completion", *FLOWS)
    data.required("type")
    kind = data.choice("type", FLOWS) or ""
    about = data.hash(kind)
    if not kind.startswith("subscription"):
        return kind, None
    if about is None:
        raise missing_parameter(data.path(kind))
    return kind, about.required("subscription")


PORTAL_CALLS: Final[tuple[tuple[str, str, Operation], ...]] = (
    ("POST", "/v1/billing_portal/sessions", _create),
)
