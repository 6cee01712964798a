"""What customers saw served is what is recorded, and what is billed: on every server, loop and lifespan."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from drivers.delivery import NOW, STRIPE_KEY, until
from field.deployments import ALL, SOME, Deployment, running
from field.endpoints import EVENTS, PLANS
from field.matrix import Matrix
from field.traffic import BILLED, INCLUDED, REFUSED, Visitors, ready, visiting
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

# The same for all: an hour at which no period ends, whatever the date.
AHEAD_S: Final = NOW.timestamp() - time.time()
DELIVERED_S: Final = 60.0
# What servers, loops and Python say when something was left behind.
LEFT_BEHIND: Final = ("was never retrieved", "but it is pending", "ResourceWarning", "was never awaited")


def clock() -> float:
    return time.time() + AHEAD_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Office:
    """Where it is looked at: the same store, and the Stripe that the servers deliver to."""

    kit: MeterKit
    emulator: StripeEmulator
    variables: dict[str, str]

    def billed(self) -> dict[str, int]:
        return {meter: int(self.emulator.accepted("cus_globex", event)) for meter, event in EVENTS.items()}

    async def recorded(self) -> dict[str, int]:
        meters = (await self.kit.usage(BILLED))["meters"]
        return {meter: meters[meter]["recorded"] for meter in EVENTS}

    async def held(self) -> int:
        """What is still set aside for anybody, of any meter."""
        usages = [await self.kit.usage(customer) for customer in (BILLED, REFUSED)]
        return sum(counts["held"] for usage in usages for counts in usage["meters"].values())


@asynccontextmanager
async def office(store_url: str) -> AsyncGenerator[Office]:
    emulator = StripeEmulator(clock=clock)
    for event in EVENTS.values():
        emulator.add_meter(event)
    emulator.add_customer("cus_globex")
    async with (
        emulator.serve() as stripe_url,
        MeterKit(PLANS, redis_url=store_url, clock=clock, shards=4, flush=False, store_timeout=60.0) as kit,
    ):
        await kit.customers.link(BILLED, "cus_globex")
        await kit.customers.set_plan(BILLED, "pro")
        settings = {"REDIS_URL": store_url, "STRIPE_API_KEY": STRIPE_KEY, "STRIPE_API_BASE": stripe_url}
        settings |= {"SHARDS": "4", "STORE_TIMEOUT": "60", "FLUSH_INTERVAL": "2"}
        variables = {f"METERKIT_{name}": value for name, value in settings.items()}
        variables["FIELD_CLOCK_AHEAD"] = str(AHEAD_S)
        yield Office(kit=kit, emulator=emulator, variables=variables)


def deployments() -> list[object]:
    return [
        pytest.param(each, id=str(each), marks=[] if each in SOME else [pytest.mark.whole]) for each in ALL
    ]


@pytest.mark.dear("a real server starts, is visited and stops")
@pytest.mark.parametrize("deployment", deployments())
async def test_i6_what_was_served_is_recorded_and_billed(
    deployment: Deployment, store_url: str, tmp_path: Path, matrix: Matrix
) -> None:
    # F-1, F-4, F-7: on uvloop nothing was counted, without a lifespan nothing was delivered, and a client
    # that hung up on an app which then ended in peace paid nothing.
    async with office(store_url) as desk:
        with running(deployment, tmp_path, **desk.variables) as server:
            async with visiting(server.url) as client:
                await ready(client, server)
                visitors = Visitors(client)
                await visitors.all_come()
            assert {200: INCLUDED, 429: 12 - INCLUDED} == visitors.statuses
            served = {meter: visitors.seen[meter] for meter in EVENTS}
            # By the flusher in the server's own process: nobody else delivers. Where it does not come, the
            # comparison below says what is missing.
            with suppress(TimeoutError):
                await until(lambda: desk.billed() == served, within_s=DELIVERED_S)
            code = server.stop()
        recorded, billed = await desk.recorded(), desk.billed()
        matrix.add(deployment, served=served, recorded=recorded, billed=billed)
        assert served == recorded == billed
        assert await desk.held() == 0
        assert code in {0, -15}
        said = server.log.read_text(errors="replace")
        assert [] == [line for line in said.splitlines() if any(word in line for word in LEFT_BEHIND)]
