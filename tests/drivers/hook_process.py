"""A kit in a process of its own that works off webhooks; see ``workers.py`` for how it is told.

Its argument is a JSON object: ``store`` and ``stripe`` are URLs, ``now`` an instant at which the clock
stands; ``crash`` names where the process kills itself with SIGKILL while it looks at a Stripe customer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

from drivers.webhooks import hooked_kit
from drivers.workers import obey
from meterkit.customers.states import States
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit import MeterKit


def die_at(point: str) -> None:
    """Have the process die between two steps of a look."""
    steps: dict[str, tuple[type, str]] = {
        "taken": (HookQueue, "take"),
        "fetched": (StripeApi, "list"),
        "linked": (States, "change"),
        "told": (HookQueue, "done"),
    }
    where, name = steps[point]
    step: Callable[..., Awaitable[Any]] = getattr(where, name)

    async def then_die(*args: Any, **kwargs: Any) -> Any:
        if point != "told":
            await step(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(where, name, then_die)


class Commands:
    def __init__(self, kit: MeterKit) -> None:
        self._kit = kit

    async def nothing(self) -> str:
        return "ready"

    async def work_off(self) -> str:
        await self._kit.webhooks.work_off()
        return "done"


async def main(options: dict[str, Any]) -> None:
    clock = Clock(datetime.fromisoformat(options["now"]))
    async with hooked_kit(options["store"], options["stripe"], clock) as kit:
        if "crash" in options:
            die_at(options["crash"])
        await obey(Commands(kit))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
