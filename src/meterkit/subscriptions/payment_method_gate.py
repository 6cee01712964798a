"""Payment method gate: a plan with ``payment_method: required`` is active only once a method is saved.

Stripe makes a subscription ``active`` when its first invoice is zero, whether or not it could charge a later
one, and leaves a SetupIntent to be confirmed
(https://docs.stripe.com/billing/subscriptions/deferred-payment). meterkit shows such a subscription as
``incomplete`` until a payment method is saved.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meterkit.errors import StripeError, StripeUnavailableError
from meterkit.stripe.idempotency_keys import key_of, key_prefix
from meterkit.stripe.request import KEY_REFUSALS
from meterkit.subscriptions.stripe_objects import (
    AWAITS_METHOD,
    NEVER_BEGAN,
    has_payment_method,
    has_subscription_method,
    id_in,
    is_charged,
    mark_of,
    part_of,
    text_in,
)
from meterkit.subscriptions.subscription_reading import (
    asks_for_payment_method,
    is_free_after_trial,
    plan_of,
)
from meterkit.subscriptions.subscription_updates import end_unpaid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.stripe.api import StripeApi
    from meterkit.stripe.request import Parameter


_logger = logging.getLogger("meterkit.subscriptions")
_RUNNING: Final = frozenset({"active", "past_due", "unpaid", "paused"})
# As long as Stripe waits for a first payment
# (https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses).
_WAITS_S: Final = 23 * 3_600
SIGN_UP: Final = "sign-up"
"""Prefix of the mark of a subscription that meterkit created on a plan that requires a payment method."""
_INTENTS: Final = "/v1/setup_intents"
# https://docs.stripe.com/payments/paymentintents/lifecycle
_INTENT_ENDED: Final = frozenset({"canceled", "succeeded"})
_INTENTS_MAX: Final = 16


def needs_payment_method(found: Mapping[str, Any], catalog: Catalog, known: SubscriptionState | None) -> bool:
    """Whether a subscription without its own payment method needs one of its customer to be active.

    One that was active stays so, even without a card or if the plans file did not require one before.

    Args:
        found: as Stripe shows it, with ``latest_invoice`` expanded.
        catalog: the plans file.
        known: the stored subscription.
    """
    plan = plan_of(found, catalog)
    if plan is None or plan.payment_method != "required" or not is_charged(found):
        return False
    if has_subscription_method(found):
        return False
    if known is not None and known.id == found["id"] and known.status != "trialing":
        if known.has_begun:
            return False
        if known.awaits_payment_method:
            return found["status"] in _RUNNING
    return found["status"] == "active" and _has_paid_nothing(found)


def _has_paid_nothing(found: Mapping[str, Any]) -> bool:
    """Whether the latest invoice brought no payment; one due after a trial is left to dunning."""
    latest = part_of(found, "latest_invoice")
    if not latest:
        return bool(id_in(found, "pending_setup_intent"))
    is_due = bool(found.get("trial_end") and latest.get("amount_due"))
    return not latest.get("amount_paid") and not is_due


def hold_back(found: Mapping[str, Any]) -> dict[str, Any]:
    """Show a subscription that waits for a payment method as one that waits for its first payment."""
    return {**found, "status": "incomplete", AWAITS_METHOD: True}


def mark_never_in_force(found: Mapping[str, Any], known: SubscriptionState | None) -> dict[str, Any]:
    """Mark a subscription that was ended at Stripe while it waited for a card as never begun."""
    is_known = known is not None and known.id == found["id"]
    if not is_known or known is None or known.has_begun or not known.awaits_payment_method:
        return {**found}
    if found["status"] != "canceled" or has_subscription_method(found):
        return {**found}
    details = part_of(found, "cancellation_details")
    return {**found, "cancellation_details": {**details, "comment": NEVER_BEGAN}}


def is_abandoned(found: Mapping[str, Any], now_s: float) -> bool:
    """Whether a sign-up by meterkit has waited too long for a payment method.

    A subscription made or changed elsewhere is never ended, nor is one whose SetupIntent has succeeded: it
    may have been active, and the store may have lost that.
    """
    since_s = max(int(found.get("created") or 0), int(found.get("trial_end") or 0))
    is_ours = mark_of(found).startswith(key_prefix(SIGN_UP)) and bool(id_in(found, "pending_setup_intent"))
    return found.get(AWAITS_METHOD) is True and is_ours and now_s >= since_s + _WAITS_S


class GatedSubscriptions(NamedTuple):
    """The subscriptions of a Stripe customer after the gate.

    Attributes:
        found: as Stripe shows them; those that wait for a payment method are ``incomplete``.
        has_payment_method: whether a default one is saved for those without their own.
    """

    found: list[dict[str, Any]]
    has_payment_method: bool


class PaymentMethodGate:
    """Holds back subscriptions that wait for a payment method.

    Each method raises :class:`~meterkit.errors.StripeError` if Stripe refuses, or does not answer.

    Args:
        api: makes the Stripe client on first use.
    """

    def __init__(self, api: Callable[[], StripeApi]) -> None:
        self._api = api

    async def apply(
        self,
        linked: str,
        found: Sequence[dict[str, Any]],
        catalog: Catalog,
        known: SubscriptionState | None,
    ) -> GatedSubscriptions:
        """Find a saved payment method if one of the subscriptions needs it; hold back those without.

        Args:
            linked: the Stripe customer.
            found: all of its subscriptions, with ``latest_invoice`` expanded.
            catalog: the plans file.
            known: the stored subscription.
        """
        found = [mark_never_in_force(one, known) for one in found]
        asking = {one["id"] for one in found if needs_payment_method(one, catalog, known)}
        on_trial = {
            one["id"] for one in found if asks_for_payment_method(one) or is_free_after_trial(one, catalog)
        }
        if not asking | on_trial:
            return GatedSubscriptions(found, has_payment_method=False)
        if has_payment_method(await self._api().get(f"/v1/customers/{linked}")):
            return GatedSubscriptions(found, has_payment_method=True)
        card = await self._find_saved_method(linked)
        gated = [
            await self._set_default_method(one, card) if one["id"] in asking | on_trial else one
            for one in found
        ]
        held = [
            hold_back(one) if one["id"] in asking and not has_subscription_method(one) else one
            for one in gated
        ]
        return GatedSubscriptions(held, has_payment_method=False)

    async def can_charge(self, found: Mapping[str, Any]) -> bool:
        """Whether Stripe can charge a subscription; a saved card that is no default becomes its own."""
        if not is_charged(found) or has_subscription_method(found):
            return True
        linked = id_in(found, "customer")
        if has_payment_method(await self._api().get(f"/v1/customers/{linked}")):
            return True
        return has_subscription_method(
            await self._set_default_method(dict(found), await self._find_saved_method(linked))
        )

    async def has_saved_method(self, shown: Mapping[str, Any]) -> bool:
        """Whether a Stripe customer has a payment method, the default or another."""
        return has_payment_method(shown) or await self._find_saved_method(str(shown["id"])) is not None

    async def find_setup_secret(self, linked: str, found: Mapping[str, Any]) -> str:
        """Find the client secret of a SetupIntent to confirm: the subscription's, or a new one.

        Args:
            linked: the Stripe customer.
            found: a subscription that waits for a payment method, with ``pending_setup_intent`` expanded.
        """
        pending = part_of(found, "pending_setup_intent")
        if pending and text_in(pending, "status") not in _INTENT_ENDED:
            return text_in(pending, "client_secret")
        params: dict[str, Parameter] = {"customer": linked, "usage": "off_session"}
        ended = text_in(pending, "id")
        intent: dict[str, Any] = {}
        for _ in range(_INTENTS_MAX):
            key = key_of("setup", found["id"], params, ended)
            made = await self._api().post(_INTENTS, params, idempotency_key=key)
            # A replayed response shows the intent as it was then.
            intent = await self._api().get(f"{_INTENTS}/{made['id']}")
            if intent["status"] not in _INTENT_ENDED:
                break
            ended = str(intent["id"])
        return text_in(intent, "client_secret")

    async def end_abandoned(self, found: Sequence[dict[str, Any]], now_s: float) -> list[dict[str, Any]]:
        """End the sign-ups that had no payment method within 23 hours, as Stripe ends unpaid ones."""
        return [await self._end_or_log(one) if is_abandoned(one, now_s) else one for one in found]

    async def _end_or_log(self, found: dict[str, Any]) -> dict[str, Any]:
        try:
            return await end_unpaid(self._api(), found)
        except StripeUnavailableError:
            raise
        except StripeError as error:
            _logger.warning("subscription %s without a payment method is not ended: %s", found["id"], error)
            return found

    async def _find_saved_method(self, linked: str) -> str | None:
        """Find the payment method that was last attached to a Stripe customer; None if there is none."""
        try:
            listed = await self._api().get(f"/v1/customers/{linked}/payment_methods", {"limit": 1})
        except StripeError as error:
            if error.status in KEY_REFUSALS:
                return None  # A restricted key may not read them.
            raise
        saved: list[dict[str, Any]] = listed["data"]
        return str(saved[0]["id"]) if saved else None

    async def _set_default_method(self, found: dict[str, Any], card: str | None) -> dict[str, Any]:
        """Make a saved card the subscription's default: Stripe may or may not do so itself."""
        if card is None:
            return found
        path, params = f"/v1/subscriptions/{found['id']}", {"default_payment_method": card}
        try:
            await self._api().post(path, params, idempotency_key=key_of("card", found["id"], card))
        except StripeUnavailableError:
            raise
        except StripeError as error:
            _logger.warning("subscription %s cannot be charged with %s: %s", found["id"], card, error)
            return found
        return {**found, "default_payment_method": card}
