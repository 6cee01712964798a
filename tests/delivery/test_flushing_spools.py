"""A flush of everything sends the spools of processes that are gone, from code as from the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from drivers.delivery import PLANS, Desk, desk, kit_for
from drivers.spools import spool_with
from meterkit import MeterKit, SettingsError
from meterkit.catalog import loads

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("valkey")]


def left_behind(kit: MeterKit, quantity: int = 7) -> Path:
    file = spool_with(kit, kit.settings.spool_dir, "requests", quantity)
    file.close()
    return file.path


@asynccontextmanager
async def desk_with_acme(store_url: str, directory: Path, **settings: Any) -> AsyncGenerator[Desk]:
    async with desk(store_url, spool_dir=directory, **settings) as at:
        await at.use("acme", requests=5)
        yield at


@pytest.mark.each_store
async def test_everything_is_all_that_was_used_also_what_is_spooled(store_url: str, tmp_path: Path) -> None:
    async with desk_with_acme(store_url, tmp_path) as at:
        await at.kit.store.send_spools()  # A start looks for them, too: it has found none.
        file = left_behind(at.kit)
        report = await at.kit.flush()
        assert (report.spooled, file.exists()) == (0, True)
        report = await at.kit.flush(everything=True)
        assert (report.spooled, report.is_complete, file.exists(), at.accepted("acme")) == (
            1,
            True,
            False,
            12,
        )


async def test_a_kit_that_was_not_started_sends_them_too(store_url: str, tmp_path: Path) -> None:
    async with desk_with_acme(store_url, tmp_path) as at:
        other = kit_for(store_url, at.url, clock=at.clock, spool_dir=tmp_path)
        file = left_behind(other)
        report = await other.flush(everything=True)
        assert (report.spooled, file.exists(), at.accepted("acme")) == (1, False, 12)
        await other.stop()


@pytest.mark.each_store
async def test_without_a_stripe_key_everything_is_what_is_spooled(store_url: str, tmp_path: Path) -> None:
    # F-20k: an app that meters without Stripe could send its spools by no command.
    async with desk_with_acme(store_url, tmp_path) as at:
        kit = kit_for(store_url, at.url, clock=at.clock, spool_dir=tmp_path, stripe_api_key=None)
        file = left_behind(kit)
        report = await kit.flush(everything=True)
        assert (report.spooled, report.left, report.is_complete, file.exists()) == (1, 1, False, False)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["pending"] == 12
        with pytest.raises(SettingsError, match="METERKIT_STRIPE_API_KEY"):
            await kit.flush()
        await kit.stop()
        assert at.emulator.requests == ()


async def test_the_plan_at_sending_decides_what_a_spool_includes(store_url: str, tmp_path: Path) -> None:
    plans = loads(PLANS + "  max: {extends: pro, meters: {requests: {included: 2_000, overage: bill}}}\n")
    async with desk_with_acme(store_url, tmp_path, catalog=plans) as at:
        left_behind(at.kit, 1_500)
        await at.kit.customers.set_plan("acme", "max")
        await at.kit.flush(everything=True)
        assert (await at.kit.usage("acme"))["meters"]["requests"]["overage"] == 0
