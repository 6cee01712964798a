"""A kit that sells top-ups in a process of its own, which kills itself with SIGKILL at a step.

Its argument is a JSON object: ``store`` and ``stripe`` are URLs, ``now`` is where the clock stands, ``auto``
says whether it sells automatic top-ups, and ``dies`` is the step:

- ``begun``: an automatic top-up has begun, before the first request to Stripe;
- ``post 1``: after the first request to Stripe that changes something, and so on;
- ``noted``: after the first note about a paid invoice, which is made before its grant;
- ``noted 2``: after the second note, which is made after the grant;
- ``read``: between reading a paid invoice and its grant;
- ``granted``: after the grant;
- ``begun 2``: an automatic top-up has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from drivers.delivery import STRIPE_KEY
from drivers.top_ups import AUTO, CATALOG, parts_of
from drivers.workers import obey
from meterkit import MeterKit
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions import top_up_payments
from meterkit.subscriptions.service import auto_top_ups
from meterkit.testing import Clock

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
        (auto_top_ups, "step", "", "begun"),
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

    async def low(self, event: str) -> None:
        """The balance is low: an automatic top-up is bought."""
        await parts_of(self.kit)[2].on_low("acme", "usd", event)

    async def work_off(self) -> str:
        await self.kit.webhooks.work_off()
        return "done"


async def main(options: dict[str, Any]) -> None:
    die_at(options["dies"])
    settings: dict[str, Any] = {
        "flush": False,
        "shards": 4,
        "store_timeout": 60.0,
        "stripe_api_key": STRIPE_KEY,
        "stripe_api_base": options["stripe"],
        "clock": Clock(datetime.fromisoformat(options["now"])),
    }
    async with MeterKit(AUTO if options["auto"] else CATALOG, redis_url=options["store"], **settings) as kit:
        await obey(Commands(kit))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
