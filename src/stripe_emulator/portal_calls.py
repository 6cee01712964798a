"""API calls about sessions of the customer portal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stripe_emulator.call_table import CallTable
from stripe_emulator.page_sessions import (
    PORTAL_CONFIGURATION,
    PORTAL_FLOWS,
    PortalSession,
)
from stripe_emulator.protocol import JsonObject, missing_parameter, new_id

if TYPE_CHECKING:
    from stripe_emulator.account import Account
    from stripe_emulator.call import Call, Params

CALLS: Final = CallTable()

# Accepted and shown nowhere.
PORTAL_IGNORED: Final = "after_expiration locale on_behalf_of"


@CALLS(
    "POST /v1/billing_portal/sessions",
    "customer return_url configuration flow_data",
    PORTAL_IGNORED,
    expandable=(),
)
def _create_portal(account: Account, call: Call) -> JsonObject:
    """https://docs.stripe.com/api/customer_portal/sessions/create."""
    params = call.params
    customer = account.customers.require(params.required("customer"))
    return_url = params.url("return_url")
    flow, subscription = _read_flow(params.hash("flow_data"))
    session_id = new_id("bps_1", length=23)
    session = PortalSession(
        id=session_id,
        created=int(call.now),
        customer=customer,
        url=f"{call.base_url}/p/session/{session_id}",
        return_url=return_url,
        livemode=call.livemode,
        configuration=params.nonempty_text("configuration") or PORTAL_CONFIGURATION,
        flow=flow,
        subscription=subscription,
    )
    account.portals.add(session)
    return session.to_json()


def _read_flow(data: Params | None) -> tuple[str | None, str | None]:
    """Return the flow that a portal page is opened for, and its subscription."""
    if data is None:
        return None, None
    data.only("type after_completion", *PORTAL_FLOWS)
    kind = data.required_choice("type", PORTAL_FLOWS)
    about = data.hash(kind)
    if not kind.startswith("subscription"):
        return kind, None
    if about is None:
        raise missing_parameter(data.path(kind))
    return kind, about.required("subscription")
