"""A program of a worker process that works off webhooks and sells top-ups, and dies at a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from drivers import webhooks
from drivers.forked_command import die_at
from drivers.top_ups import AUTO, CATALOG, parts_of
from drivers.worker_process import Commands
from meterkit.customers.states import CustomerStates
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions import top_up_payments
from meterkit.subscriptions.service import top_ups as credit_sales
from meterkit.subscriptions.webhooks.sync_queue import SyncQueue

SOLD: Final = {"plans": webhooks.CATALOG, "packs": CATALOG, "auto": AUTO}
STEPS: Final[Mapping[str, tuple[Any, str, str]]] = {
    "taken": (SyncQueue, "lease_due", "after"),
    "fetched": (StripeApi, "list", "after"),
    "linked": (CustomerStates, "change", "after"),
    "told": (SyncQueue, "complete", "before"),
    "post": (StripeApi, "post", "after"),
    "read": (top_up_payments, "add_grant", "before"),
    "granted": (top_up_payments, "add_grant", "after"),
    "noted": (top_up_payments, "move_auto_top_up", "after"),
    "begun": (credit_sales, "move_auto_top_up", "after"),
}
"""Of a look at a Stripe customer, and of a top-up.

A number behind a name says at which time. The first note about a paid invoice is made before its grant, the
second one after it; the second step of an automatic top-up ends it.
"""


class Paying(Commands):
    """A kit that sells what the option ``sells`` names; its process dies at ``crash``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options, SOLD[options["sells"]])
        step, _, nth = options["crash"].partition(" ")
        die_at(*STEPS[step], nth=int(nth or 1))

    async def buy(self, key: str) -> str:
        return (await self.kit.credits.buy("acme", 1000, idempotency_key=key)).status

    async def low(self, event: str) -> None:
        """The balance is low: an automatic top-up is bought."""
        await parts_of(self.kit)[2].on_low("acme", "usd", event)

    async def work_off(self) -> str:
        await self.kit.webhooks.work_off()
        return "done"
