"""Customer portal sessions: a page on which a customer cancels, resumes and mends the way to pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import fields_of

if TYPE_CHECKING:
    from stripe_emulator.protocol import JsonObject

FLOWS: Final = (
    *("customer_update", "payment_method_update", "subscription_cancel", "subscription_pause"),
    *("subscription_update", "subscription_update_confirm"),
)
CONFIGURATION: Final = "bpc_1emulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalSession:
    """A portal session.

    Attributes:
        created: Unix seconds.
        flow: what the page is opened for; None: its front page.
        subscription: which one the flow is about.
    """

    id: str
    created: int
    customer: str
    url: str
    return_url: str | None
    livemode: bool
    configuration: str = CONFIGURATION
    flow: str | None = None
    subscription: str | None = None

    def to_json(self) -> JsonObject:
        """Return the session as Stripe shows it.

        https://docs.stripe.com/api/customer_portal/sessions/object
        """
        return {
            **fields_of(self, "subscription"),
            "object": "billing_portal.session",
            "flow": self._flow(),
            "locale": None,
            "on_behalf_of": None,
        }

    def _flow(self) -> JsonObject | None:
        if self.flow is None:
            return None
        after = {"hosted_confirmation": None, "redirect": None, "type": "portal_homepage"}
        flows: JsonObject = {name: None for name in FLOWS if name.startswith("subscription")}
        if self.subscription is not None:
            flows[self.flow] = {"subscription": self.subscription}
        return {"after_completion": after, "type": self.flow, **flows}
