"""A meter that is renamed in the plans file, under one event name: no two of its intents share a minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import CATALOG, NOW, PLANS, desk, kit_for
from meterkit import MeterKit
from meterkit.catalog import loads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.delivery import Desk

pytestmark = pytest.mark.anyio

RENAMED = loads(PLANS.replace("requests:", "calls:").replace("{requests: 1}", "{calls: 1}"))
JULY = datetime(2031, 7, 1, tzinfo=UTC)


@pytest.fixture
async def renaming(store_url: str) -> AsyncGenerator[tuple[Desk, MeterKit]]:
    """A desk, and a kit of the plans file in which requests are called calls."""
    async with desk(store_url) as at:
        await at.link("acme")
        async with kit_for(store_url, at.url, clock=at.clock, catalog=RENAMED) as renamed:
            yield at, renamed


def minutes(at: Desk) -> list[datetime]:
    """The minutes of all that Stripe has accepted, in order."""
    return sorted(datetime.fromtimestamp(event.timestamp, UTC) for event in at.emulator.events)


async def test_i6_usage_of_both_names_has_a_minute_each(renaming: tuple[Desk, MeterKit]) -> None:
    at, renamed = renaming
    await at.kit.record("acme", "requests", 6)
    await renamed.record("acme", "calls", 4)
    assert (await renamed.flush(everything=True)).is_complete
    this = NOW.replace(second=0)
    assert (at.accepted("acme"), minutes(at)) == (10, [this, this + timedelta(minutes=1)])
    # And the next one follows both.
    await renamed.record("acme", "calls", 1)
    await renamed.flush(everything=True)
    assert minutes(at)[-1] == this + timedelta(minutes=2)


async def test_i6_both_names_rest_at_a_periods_end_has_own_minutes(
    renaming: tuple[Desk, MeterKit],
) -> None:
    at, renamed = renaming
    at.clock.set(JULY - timedelta(minutes=3, seconds=57))
    for _ in range(3):
        await renamed.record("acme", "calls", 1)
        await renamed.flush(everything=True, timeout_s=0)
    await at.kit.record("acme", "requests", 6)
    await renamed.record("acme", "calls", 4)
    at.clock.set(JULY + timedelta(minutes=1))
    assert (await renamed.flush(everything=True)).is_complete
    assert at.accepted("acme") == 13
    assert minutes(at) == [JULY - timedelta(minutes=left) for left in (4, 3, 2, 1)]
    assert CATALOG.meters.keys() != RENAMED.meters.keys()


WARNING: Final = (
    "meter 'calls' sends event 'api_requests', which this store has counted as meter 'requests' until now"
)
CURE: Final = "keep the key 'requests' in the plans file, and write `name:` for what customers see"


async def test_f_22a_a_renamed_meter_is_named_with_its_cost_and_cure(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(store_url) as at:
        assert "counted as meter" not in caplog.text
        for _ in range(2):
            async with kit_for(store_url, at.url, clock=at.clock, catalog=RENAMED):
                pass
        # Once: the second process knows both names.
        assert (caplog.text.count(WARNING), caplog.text.count(CURE)) == (1, 1)
        assert (
            "the included quantity, cap, grants and rates of 'calls' beside those of 'requests'"
            in caplog.text
        )
        (record,) = [one for one in caplog.records if WARNING in one.getMessage()]
        assert record.levelname == "WARNING"


async def test_f_22a_a_reload_names_a_renamed_meter(
    store_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plans = tmp_path / "plans.yaml"
    plans.write_text(PLANS)
    async with MeterKit(str(plans), redis_url=store_url, flush=False) as kit:
        plans.write_text(PLANS.replace("requests:", "calls:").replace("{requests: 1}", "{calls: 1}"))
        assert WARNING not in caplog.text
        assert await kit.reload()
        assert WARNING in caplog.text
