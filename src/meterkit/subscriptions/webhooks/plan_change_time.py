"""The time of a plan change at Stripe, from Stripe's events: a webhook may come days later."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StripeError
from meterkit.subscriptions.stripe_objects import part_of, text_in
from meterkit.subscriptions.subscription_reading import plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.subscription import SubscriptionState
    from meterkit.store.store import Store
    from meterkit.stripe.api import StripeApi

_EVENT: Final = "evt_"
_UPDATED: Final = "customer.subscription.updated"
_PAGES_MAX: Final = 3
_NOT_SHOWN: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


async def plan_changed_ms(
    store: Store,
    api: StripeApi,
    known: SubscriptionState | None,
    found: SubscriptionState | None,
    cause: str,
) -> int | None:
    """Time of a plan change at Stripe (ms); None: there was none, or Stripe has no event of it.

    Args:
        store: where the customer is.
        api: the way to Stripe.
        known: the subscription as it was known until now.
        found: as Stripe shows it now.
        cause: the id of the event that has hinted at the change, or a word.

    Raises:
        StripeError: Stripe does not answer, or refuses for another reason than the rights of the key.
    """
    if known is None or found is None or known.id != found.id:
        return None
    if known.plan_at(store.now_ms()) == found.plan:
        return None
    catalog = store.catalog
    try:
        if cause.startswith(_EVENT):
            event = await api.get(f"/v1/events/{cause}")
            if event.get("type") == _UPDATED and (at_ms := _changed_ms(event, found, catalog)) is not None:
                return at_ms
        pages = 0
        async for page in api.pages("/v1/events", {"type": _UPDATED}):
            for event in page:
                if (at_ms := _changed_ms(event, found, catalog)) is not None:
                    return at_ms
            pages += 1
            if pages == _PAGES_MAX:
                break
    except StripeError as error:
        if error.status not in _NOT_SHOWN:
            raise
    return None


def _changed_ms(event: Mapping[str, Any], found: SubscriptionState, catalog: Catalog) -> int | None:
    """Time of the event (ms), if it changed the subscription to its plan; else None."""
    data = part_of(event, "data")
    shown = part_of(data, "object")
    if text_in(shown, "id") != found.id or found.plan is None:
        return None
    plans = [
        plan_of({**shown, **previous}, catalog) for previous in ({}, part_of(data, "previous_attributes"))
    ]
    after, before = (None if plan is None else plan.key for plan in plans)
    return int(event["created"]) * 1000 if after == found.plan != before else None
