"""Plans are read again without a restart: by a call, or when the file has changed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from drivers.app import hello
from drivers.delivery import NOW
from faults.refusals import Client, eventually
from meterkit import MeterKit, MeterkitError, MeterMiddleware, PlansError, identify
from meterkit.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.anyio

PLANS = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
routes:
  - {match: "*", consume: {requests: 1}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {included: 2, overage: deny}
"""
MORE = PLANS.replace("included: 2", "included: 4")


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    path = tmp_path / "plans.yaml"
    write(path, PLANS)
    return path


def kit_of(plans: Path, store_url: str = "memory://") -> MeterKit:
    return MeterKit(plans, redis_url=store_url, clock=Clock(NOW), shards=4, flush=False)


def metered(kit: MeterKit) -> Client:
    return Client(MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id")))


async def test_i4_new_limits_bind_the_next_decision(plans: Path, store_url: str) -> None:
    async with kit_of(plans, store_url) as kit:
        client = metered(kit)
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]
        write(plans, MORE)
        assert await kit.reload()
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]
        assert (await kit.usage("acme"))["meters"]["requests"]["included"] == 4


async def test_a_bad_file_is_refused_and_the_old_one_stays(plans: Path) -> None:
    async with kit_of(plans) as kit:
        write(plans, MORE.replace("overage: deny", "overage: dany"))
        with pytest.raises(PlansError, match="did you mean 'deny'"):
            await kit.reload()
        await asyncio.to_thread(plans.unlink)
        with pytest.raises(MeterkitError, match=r"plans\.yaml"):
            await kit.reload()
        client = metered(kit)
        assert [await client.get("acme") for _ in range(3)] == [200, 200, 429]


async def test_a_file_that_means_the_same_changes_nothing(plans: Path) -> None:
    async with kit_of(plans) as kit:
        before = kit.catalog
        write(plans, "# A comment.\n" + PLANS)
        assert not await kit.reload()
        assert kit.catalog is before


async def test_a_hold_is_captured_though_its_meter_is_gone(plans: Path, store_url: str) -> None:
    async with kit_of(plans, store_url) as kit:
        async with kit.reserve("acme", {"requests": 2}) as reservation:
            write(plans, PLANS.replace("requests", "calls"))
            assert await kit.reload()
            await reservation.capture({"requests": 1})
        write(plans, PLANS)
        assert await kit.reload()
        found = (await kit.usage("acme"))["meters"]["requests"]
        assert (found["recorded"], found["held"]) == (1, 0)


async def test_a_change_of_the_file_is_noticed(
    plans: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meterkit.catalog.watch._LOOK_EVERY_S", 0.005)
    with caplog.at_level(logging.INFO, "meterkit"):
        async with kit_of(plans) as kit:
            write(plans, "schema: 2")
            await eventually(lambda: "has changed and is refused" in caplog.text)
            assert kit.catalog.plans["free"].entitlements["requests"].included == 2
            write(plans, MORE)
            await eventually(lambda: kit.catalog.plans["free"].entitlements["requests"].included == 4)
            await eventually(lambda: "plans.yaml has changed and is in force" in caplog.text)
