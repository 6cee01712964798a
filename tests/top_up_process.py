"""A kit that sells top-ups in a process of its own, which kills itself with SIGKILL at a step.

Its argument is a JSON object: ``store`` and ``stripe`` are URLs, ``now`` is where the clock stands, and
``dies`` is the step: ``post 1`` after the first request to Stripe that changes something, and so on;
``read`` between reading a paid invoice and its grant; ``granted`` between the grant and what is noted after
it; ``noted`` after that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from delivering import STRIPE_KEY
from meterkit import MeterKit
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions import top_up_payments
from meterkit.testing import Clock
from topping_up import CATALOG
from workers import obey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def die_at(step: str) -> None:
    """Have the process die at a step."""
    passed: list[str] = []

    def dying(work: Callable[..., Awaitable[Any]], before: str, after: str) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*args: Any, **options: Any) -> Any:
            passed.append(after)
            if step == before:
                os.kill(os.getpid(), signal.SIGKILL)
            done = await work(*args, **options)
            if step in {after, f"{after} {passed.count(after)}"}:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return wrapped

    for owner, name, before, after in (
        (StripeApi, "post", "", "post"),
        (top_up_payments, "put", "read", "granted"),
        (top_up_payments, "step", "", "noted"),
    ):
        setattr(owner, name, dying(getattr(owner, name), before, after))


class Commands:
    """What the process can do."""

    def __init__(self, kit: MeterKit) -> None:
        self.kit = kit

    async def nothing(self) -> str:
        return "ready"

    async def buy(self, key: str) -> str:
        return (await self.kit.credits.buy("acme", 1000, idempotency_key=key)).status

    async def work_off(self) -> str:
        await self.kit.webhooks.work_off()
        return "done"


async def main(options: dict[str, Any]) -> None:
    die_at(options["dies"])
    settings: dict[str, Any] = {
        "flush": False,
        "shards": 4,
        "store_timeout": 10.0,
        "stripe_api_key": STRIPE_KEY,
        "stripe_api_base": options["stripe"],
        "clock": Clock(datetime.fromisoformat(options["now"])),
    }
    async with MeterKit(CATALOG, redis_url=options["store"], **settings) as kit:
        await obey(Commands(kit))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
