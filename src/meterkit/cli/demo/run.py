"""Runs the demonstration: starts its parts, drives them, and compares what came out."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

try:
    import httpx
except ImportError as error:
    raise ImportError("the demonstration needs its extras: pip install 'meterkit[cli,stripe]'") from error

from meterkit import MeterKit
from meterkit.catalog import load
from meterkit.cli.demo.account import KEY, Account
from meterkit.cli.demo.child import run_child
from meterkit.cli.demo.screen import Screen
from meterkit.cli.demo.tally import evidence, lines
from meterkit.cli.demo.traffic import CUSTOMERS, drive
from meterkit.cli.output import print_table
from meterkit.errors import MeterkitError
from meterkit.redis.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from meterkit.cli.demo.child import Child
    from meterkit.cli.demo.tally import Line, Tally
    from meterkit.cli.demo.traffic import Shopper

__all__ = ["PLANS", "run"]

PLANS: Final = Path(__file__).with_name("plans.yaml")
_SETTINGS: Final = ("METERKIT_", "REDIS_URL", "STRIPE_")
_LOOPBACK: Final = "127.0.0.1"
_READY_S: Final = 60.0
_POLL_S: Final = 0.05
_FLUSH_S: Final = 60.0
# A machine that is busy with other things is no reason to serve undecided.
_STORE_S: Final = 5.0


async def run(*, lose_one: bool) -> bool:
    """Show the whole way of usage, from requests to the bill; whether the bill is right to the unit.

    Everything it starts and writes is gone when it returns, fails or is cancelled.

    Args:
        lose_one: have Stripe's stand-in forget one event, so that the bill is wrong.

    Raises:
        MeterkitError: a part does not start or does not do what it is for.
    """
    began = time.monotonic()
    for name in [name for name in os.environ if name.startswith(_SETTINGS)]:
        del os.environ[name]  # The user's settings are for the user's own service.
    screen = Screen()
    with _cancelled_by_sigterm():
        async with AsyncExitStack() as parts:
            folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="meterkit-demo-")))
            found = await _Demonstration(parts, folder, screen).run(lose_one=lose_one)
    good = all(line.agrees for line in found)
    _conclude(screen, found, good=good, took_s=time.monotonic() - began)
    return good


class _Demonstration:
    """The parts of a run, each stopped by ``parts`` in the reverse order of its start."""

    def __init__(self, parts: AsyncExitStack, folder: Path, screen: Screen) -> None:
        self._parts = parts
        self._folder = folder
        self._screen = screen
        self._catalog = load(PLANS)
        self._plans = self._catalog.plans
        self._redis_url = f"embedded://{quote(str(folder / 'store'))}"
        self._environment = os.environ | {
            "METERKIT_REDIS_URL": self._redis_url,
            "METERKIT_FLUSH": "off",
            "METERKIT_STORE_TIMEOUT": str(_STORE_S),
        }

    async def run(self, *, lose_one: bool) -> Sequence[Line]:
        screen = self._screen
        screen.headline("Starting a store, a Stripe emulator and a metered service")
        await self._start_store()
        stripe_url = await self._start_emulator()
        account = Account(await self._client(stripe_url, {"authorization": f"Bearer {KEY}"}))
        kit = await self._parts.enter_async_context(self._kit(stripe_url))
        meters = {
            name: await account.add_meter(meter.stripe.event_name)
            for name, meter in self._catalog.meters.items()
            if meter.stripe is not None
        }
        linked = {shopper.customer: await account.add_customer(shopper.customer) for shopper in CUSTOMERS}
        for shopper in CUSTOMERS:
            await kit.customers.set_plan(shopper.customer, shopper.plan)
            await kit.customers.link(shopper.customer, linked[shopper.customer])
        period = (await kit.usage(CUSTOMERS[0].customer))["period"]["id"]

        tallies = await self._serve()
        self._show_traffic(tallies)

        screen.headline("Sending the counted usage to Stripe")
        await self._upset(account, lose_one=lose_one)
        report = await kit.flush(everything=True, timeout_s=_FLUSH_S)
        screen.say(
            f"meter events: {report.sealed}; sent again: {report.retried}; not delivered: {report.left}"
        )
        usage = {shopper.customer: await kit.usage(shopper.customer) for shopper in CUSTOMERS}
        if usage[CUSTOMERS[0].customer]["period"]["id"] != period:
            raise MeterkitError("the billing month ended while the demonstration was running; run it again")
        return [
            line
            for shopper in CUSTOMERS
            for line in lines(
                shopper.customer,
                self._plans[shopper.plan],
                self._catalog,
                served=tallies[shopper.customer].served,
                counted={
                    name: meter["recorded"] for name, meter in usage[shopper.customer]["meters"].items()
                },
                billed={
                    name: await account.billed(meter_id, linked[shopper.customer])
                    for name, meter_id in meters.items()
                },
            )
        ]

    async def _start_store(self) -> None:
        # A user of the server for the whole run, so that it outlives its other users.
        server = EmbeddedServer(self._folder / "store")
        self._parts.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.to_thread(server.start)
        self._screen.say("store: an embedded Valkey server in a temporary directory")

    async def _start_emulator(self) -> str:
        child = await self._child("the Stripe emulator", "meterkit", "stripe", "emulator", "--port", "0")
        url = (await child.first_line()).partition("=")[2]
        self._screen.say(f"Stripe: an emulator at {url}")
        return url

    def _kit(self, stripe_url: str) -> MeterKit:
        return MeterKit(
            self._catalog,
            redis_url=self._redis_url,
            stripe_api_key=KEY,
            stripe_api_base=stripe_url,
            store_timeout=_STORE_S,
            flush=False,
        )

    async def _serve(self) -> Mapping[str, Tally]:
        """Run the service, send it all requests, and stop it."""
        with socket.create_server((_LOOPBACK, 0), backlog=128) as listener:
            url = f"http://{_LOOPBACK}:{listener.getsockname()[1]}"
            service = await self._child(
                *("the service", "meterkit.cli.demo.service", str(listener.fileno())),
                descriptors=(listener.fileno(),),
            )
        client = await self._client(url, {})
        await self._ready(service, client)
        self._screen.say(f"service: running under uvicorn at {url}")
        self._screen.headline("Three customers, each on a plan of its own, send requests")
        total = sum(len(shopper.asks()) for shopper in CUSTOMERS)
        with self._screen.progress("requests answered", total) as advance:
            tallies = await asyncio.gather(*(drive(client, shopper, advance) for shopper in CUSTOMERS))
        await service.stop()
        return {shopper.customer: tally for shopper, tally in zip(CUSTOMERS, tallies, strict=True)}

    async def _ready(self, service: Child, client: httpx.AsyncClient) -> None:
        deadline = time.monotonic() + _READY_S
        while service.running and time.monotonic() < deadline:
            try:
                if (await client.get("/healthz", timeout=1)).is_success:
                    return
            except httpx.TransportError:
                await asyncio.sleep(_POLL_S)
        raise service.failure("did not start")

    async def _upset(self, account: Account, *, lose_one: bool) -> None:
        if lose_one:
            self._screen.say("--break: the emulator accepts one event, and then loses it")
            await account.misbehave(action="lose")
        self._screen.say(
            "One of Stripe's answers gets lost, on purpose. That event is sent again under the same"
            " identifier, and must be counted only once."
        )
        await account.misbehave(action="drop", when="after", skip=int(lose_one))

    def _show_traffic(self, tallies: Mapping[str, Tally]) -> None:
        print_table(
            ("customer", "plan", "sent", "served", "failed, not billed", "refused", "tokens served"),
            (
                (
                    *(shopper.customer, shopper.plan, tally.sent, tally.served["requests"], tally.failed),
                    *(tally.refusals.total(), tally.served["tokens"]),
                )
                for shopper, tally in _each(tallies)
            ),
        )
        self._screen.headline("Each refusal, and why it is right")
        print_table(
            ("customer", "refused", "answer", "why"),
            (
                (
                    *(shopper.customer, times, " ".join((str(refusal.status), *refusal.policies))),
                    evidence(refusal, self._plans[shopper.plan], tally, self._catalog),
                )
                for shopper, tally in _each(tallies)
                for refusal, times in tally.refusals.items()
            ),
        )

    async def _child(self, name: str, *arguments: str, descriptors: Sequence[int] = ()) -> Child:
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        return await self._parts.enter_async_context(
            run_child(name, arguments, log=log, environment=self._environment, descriptors=descriptors)
        )

    async def _client(self, url: str, headers: Mapping[str, str]) -> httpx.AsyncClient:
        return await self._parts.enter_async_context(
            httpx.AsyncClient(base_url=url, headers=dict(headers), trust_env=False, timeout=30)
        )


def _each(tallies: Mapping[str, Tally]) -> list[tuple[Shopper, Tally]]:
    return [(shopper, tallies[shopper.customer]) for shopper in CUSTOMERS]


def _conclude(screen: Screen, found: Sequence[Line], *, good: bool, took_s: float) -> None:
    screen.headline("Comparing, unit by unit: what was served, what was counted, and what Stripe has")
    screen.say(
        "Stripe is told of every request (report: usage), but only of the tokens beyond those that a plan"
        " includes (report: overage), and only where the plan bills them."
    )
    print_table(
        ("customer", "plan", "meter", "served", "counted", "to be billed", "Stripe has", "match"),
        (
            (
                *(line.customer, line.plan, line.meter, line.served, line.counted, line.due, line.billed),
                "yes" if line.agrees else f"NO: {line.billed - line.due:+,}",
            )
            for line in found
        ),
    )
    if good:
        units = sum(line.billed for line in found)
        screen.verdict(
            f"Stripe has exactly the {units:,} units that are to be billed. Done in {took_s:.1f} s.",
            good=True,
        )
        return
    for line in found:
        if not line.agrees:
            screen.verdict(
                f"{line.customer}, {line.meter}: {line.served:,} served, {line.counted:,} counted,"
                f" {line.due:,} to be billed, but Stripe has {line.billed:,}.",
                good=False,
            )


@contextmanager
def _cancelled_by_sigterm() -> Generator[None]:
    """Have SIGTERM clean up as Ctrl-C does."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
