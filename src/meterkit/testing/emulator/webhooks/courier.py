"""Delivers webhooks: what is due, by itself while the emulator is served, and what it is told to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.testing.emulator.subscribing.turns import advance
from meterkit.testing.emulator.webhooks.deliveries import Due

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from meterkit.testing.emulator.account import Account
    from meterkit.testing.emulator.webhooks.deliveries import Delivery, Told
    from meterkit.testing.emulator.webhooks.endpoints import WebhookEndpoint
    from meterkit.testing.emulator.webhooks.signing import Forgery

__all__ = ["Courier"]

SENDER: Final = "meterkit.testing.emulator.webhooks.sender"
# How soon it is seen, in real seconds, that somebody has moved the clock.
LOOK_S: Final = 0.05


class Courier:
    """Delivers the events of an account."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def deliver_due(self, *, apps: bool = True) -> list[Delivery]:
        """Deliver all that is due, in the order in which it fell due; ``apps``: to those at hand too."""
        made: list[Delivery] = []
        while (due := self._take(apps=apps)) is not None:
            made.append(await self._send(due))
        return made

    async def deliver(
        self, events: Iterable[Told], *, endpoints: Iterable[WebhookEndpoint], how: Forgery | None
    ) -> list[Delivery]:
        """Deliver these in this order to each endpoint that wants them, as often as they are named."""
        now, endpoints = self._account.behaviour.clock(), tuple(endpoints)
        return [
            await self._send(Due(event=event, endpoint=endpoint, attempt=0, at_s=now), how=how)
            for event in events
            for endpoint in endpoints
            if endpoint.wants(event.type, thin=event.thin)
        ]

    @asynccontextmanager
    async def running(self, _: object = None) -> AsyncGenerator[None]:
        """Deliver what falls due, by the emulator's clock, for as long as the block lasts."""
        if not self._account.behaviour.automatic_webhooks:
            yield
            return
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def waker() -> None:
            loop.call_soon_threadsafe(woken.set)

        with self._account.lock:
            self._account.wakers.append(waker)
        task = asyncio.create_task(self._run(woken), name="stripe-emulator-webhooks")
        try:
            yield
        finally:
            with self._account.lock:
                self._account.wakers.remove(waker)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self, woken: asyncio.Event) -> None:
        while True:
            woken.clear()
            if self._account.endpoints.all:
                advance(self._account)
            # An app belongs to the loop of whoever delivers to it on purpose, which need not be this one.
            await self.deliver_due(apps=False)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if self._account.endpoints.all else None):
                    await woken.wait()

    def _take(self, *, apps: bool) -> Due | None:
        with self._account.lock:
            return self._account.deliveries.take(now=self._account.behaviour.clock(), apps=apps)

    async def _send(self, due: Due, *, how: Forgery | None = None) -> Delivery:
        # Needs httpx, which an emulator that nobody wants to be told by does without.
        sender: Any = import_module(SENDER)
        delivery: Delivery = await sender.send(due, now=self._account.behaviour.clock(), how=how)
        with self._account.lock:
            self._account.deliveries.settle(due, delivery)
        return delivery
