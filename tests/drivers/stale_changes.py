"""A change of a subscription that was prepared before another one, and is sent after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.live_subscription import LiveSubscription

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit import MeterKit
    from meterkit.stripe.request import Parameter


async def prepare_change(
    kit: MeterKit, subscription: str, price: str, what: Literal["items", "schedule"]
) -> Callable[[], Awaitable[object]]:
    """Read a subscription now; what is returned sends a change of its item or its schedule."""
    api = StripeApi(kit.settings)
    live = await LiveSubscription.fetch(api, subscription)
    assert live is not None
    item = next(item.id for item in live.items if item.price == price)

    async def send() -> None:
        try:
            if what == "items":
                await live.update({"items": [{"id": item, "quantity": 1}]})
            else:
                items: list[dict[str, Parameter]] = [{"price": "price_team", "quantity": 1}]
                await live.send_phases(live.schedule or {}, [{"items": items}])
        finally:
            await api.close()

    return send
