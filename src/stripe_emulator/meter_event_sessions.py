"""Meter event sessions, API v2: their token replaces the key at the stream."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from stripe_emulator.protocol import ApiError, JsonObject, new_id
from stripe_emulator.webhook_events import instant_text

if TYPE_CHECKING:
    from stripe_emulator.call import Call

# https://docs.stripe.com/api/v2/billing/meter-event-stream/session/create
SESSION_S: Final = 15 * 60


class MeterEventSessions:
    """The sessions of an account, by the token that each one's calls carry instead of a key."""

    def __init__(self) -> None:
        self._ends: dict[str, tuple[float, bool]] = {}

    def create(self, call: Call) -> JsonObject:
        """``POST /v2/billing/meter_event_session``: its token holds for a quarter of an hour."""
        token = new_id("mes_token", length=40)
        self._ends[token] = (call.now + SESSION_S, call.livemode)
        return {
            "id": new_id("mes"),
            "object": "v2.billing.meter_event_session",
            "authentication_token": token,
            "created": instant_text(call.now),
            "expires_at": instant_text(call.now + SESSION_S),
            "livemode": call.livemode,
        }

    def authenticate(self, token: str, *, now: float) -> bool:
        """Return whether a token is one of live mode.

        Raises:
            ApiError: 401, for which Stripe's SDK has an error of its own where the session is over.
        """
        ends_s, livemode = self._ends.get(token, (None, False))
        if ends_s is None:
            message = "Invalid authentication token: a meter event stream takes that of a session."
            raise ApiError(message, status=HTTPStatus.UNAUTHORIZED)
        if now >= ends_s:
            raise ApiError(
                "The temporary session token has expired.",
                status=HTTPStatus.UNAUTHORIZED,
                kind="temporary_session_expired",
                code="billing_meter_event_session_expired",
            )
        return livemode

    def end(self) -> None:
        """Expire all tokens before their time."""
        self._ends = {token: (0.0, livemode) for token, (_, livemode) in self._ends.items()}
