"""Setup intents: cards that are authenticated for payments to come (https://docs.stripe.com/api/setup_intents)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from meterkit.testing.emulator.replies import JsonObject, no_such

__all__ = ["SetupIntent", "SetupIntents"]

Status = Literal["requires_payment_method", "requires_confirmation", "succeeded", "canceled"]


@dataclass(slots=True, kw_only=True)
class SetupIntent:
    """A setup intent.

    Attributes:
        usage: ``off_session``: payments will be made without the customer.
    """

    id: str
    created: int
    customer: str | None
    payment_method: str | None
    usage: str
    client_secret: str
    metadata: dict[str, str]
    status: Status
    livemode: bool = False

    def to_json(self) -> JsonObject:
        """Return it as Stripe shows it (https://docs.stripe.com/api/setup_intents/object)."""
        return {
            "id": self.id,
            "object": "setup_intent",
            "client_secret": self.client_secret,
            "created": self.created,
            "customer": self.customer,
            "last_setup_error": None,
            "livemode": self.livemode,
            "metadata": dict(self.metadata),
            "next_action": None,
            "payment_method": self.payment_method,
            "payment_method_types": ["card"],
            "status": self.status,
            "usage": self.usage,
        }


class SetupIntents:
    """All setup intents of the emulated account."""

    def __init__(self) -> None:
        self._by_id: dict[str, SetupIntent] = {}

    def add(self, intent: SetupIntent) -> None:
        """Take over an intent."""
        self._by_id[intent.id] = intent

    def find(self, name: str) -> SetupIntent:
        """Return an intent by its id or client secret. Raises ApiError, 404, if there is none."""
        found = self._by_id.get(name.partition("_secret_")[0])
        if found is None or name not in {found.id, found.client_secret}:
            raise no_such("setupintent", name)
        return found
