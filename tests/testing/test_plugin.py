"""Tests of an app, as the page on testing shows them, run by pytest in a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import MeterkitError
from meterkit.testing import Clock, override

PAGE: Final = Path(__file__).parents[2] / "docs/testing.md"
PLANS: Final = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
FILES: Final = dict(re.findall(r"^```py\n# (\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
LEAKS: Final = """\
import asyncio

import pytest

from meterkit import MeterKit

KIT = MeterKit("plans.yaml", redis_url="memory://", flush=False, enforcement="on")


@pytest.mark.parametrize("nth", range(2))
def test_a_kit_of_the_app_itself_begins_each_test_with_nothing(nth):
    async def use():
        async with KIT as kit:
            return [(await kit.consume("ada", "requests")).allowed for _ in range(3)]

    assert asyncio.run(use()) == [True, True, False]
"""


@pytest.mark.dear("the files of the page are run by a pytest of their own")
def test_the_page_on_testing_holds(tmp_path: Path) -> None:
    """F-64."""
    tests = {
        f"test_{name}.py" for name in ("sync", "async", "subscriptions", "top_ups", "billing", "webhooks")
    }
    assert set(FILES) == {"conftest.py", "shop.py", *tests}
    files = {**FILES, "plans.yaml": PLANS, "test_leaks.py": LEAKS, "pytest.ini": "[pytest]\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        # looptime's plugin is for pytest-asyncio: it fails without it.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:looptime_plugin"],
        cwd=tmp_path,
        # A developer's settings, which would let all requests pass.
        env={**os.environ, "METERKIT_ENFORCEMENT": "off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "18 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def in_memory(clock: Clock) -> MeterKit:
    return MeterKit(loads(PLANS), redis_url="memory://", key_prefix=uuid4().hex, clock=clock, flush=False)


@pytest.mark.anyio
@pytest.mark.parametrize("year", [1971, 1999, 2020, 2040])
async def test_a_clock_may_stand_anywhere_in_memory(year: int) -> None:
    """F-64: a past clock counted nothing."""
    clock = Clock(datetime(year, 1, 1, tzinfo=UTC))
    async with in_memory(clock) as kit:
        for customer, days in (("ada", 0), ("ada", 31), ("eve", -400)):
            clock.advance(timedelta(days=days))
            assert [(await kit.consume(customer, "requests")).allowed for _ in range(3)] == [
                True,
                True,
                False,
            ]
        assert (await kit.usage("eve"))["meters"]["requests"]["used"] == 2


@pytest.mark.anyio
async def test_a_clock_in_the_past_is_refused_with_words_on_a_server(store_url: str) -> None:
    """F-64."""
    clock = Clock()
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=clock, flush=False) as kit:
        assert (await kit.consume("ada", "requests")).allowed
        clock.advance(-timedelta(days=1))
        with pytest.raises(MeterkitError, match=r"which is past, and redis://.* take memory:// as the store"):
            await kit.consume("ada", "requests")
        clock.advance(timedelta(days=1))


@pytest.mark.anyio
async def test_override_ends_with_its_block_and_names_the_plans() -> None:
    async with in_memory(Clock()) as kit:
        await kit.customers.set_plan("ada", "free")
        with override(kit, plan="pro"):
            assert [(await kit.consume("ada", "requests")).plan for _ in range(3)] == ["pro"] * 3
        decision = await kit.consume("ada", "requests")
        assert (decision.plan, decision.allowed) == ("free", False)
        with (
            pytest.raises(MeterkitError, match="there is no plan 'prro'; declared plans: free, pro; did you"),
            override(kit, plan="prro"),
        ):
            pass


@pytest.mark.anyio
async def test_of_overrides_the_innermost_counts() -> None:
    async with in_memory(Clock()) as kit:
        with override(kit, plan="pro"):
            with override(kit, plan="free"):
                assert (await kit.usage("ada"))["plan"] == "free"
            assert (await kit.usage("ada"))["plan"] == "pro"
        assert (await kit.usage("ada"))["plan"] == "free"


NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_stands_still_until_it_is_moved() -> None:
    clock = Clock(NOON)
    assert NOON == clock.now() == clock.now()
    clock.advance(timedelta(hours=1, milliseconds=5))
    assert NOON + timedelta(hours=1, milliseconds=5) == clock.now()
    clock.advance(-timedelta(days=1))
    assert NOON - timedelta(hours=23) + timedelta(milliseconds=5) == clock.now()
    clock.set(NOON)
    assert clock.now() == NOON


def test_a_time_without_zone_is_refused() -> None:
    naive = NOON.replace(tzinfo=None)
    for set_clock in (Clock, Clock(NOON).set):
        with pytest.raises(ValueError, match="has no time zone"):
            set_clock(naive)
    berlin = datetime(2026, 11, 20, 13, tzinfo=timezone(timedelta(hours=1)))
    assert repr(Clock(berlin)) == "Clock(2026-11-20T12:00:00+00:00)"


@pytest.mark.anyio
async def test_a_move_binds_later_questions_of_the_same_turn(any_store_url: str) -> None:
    # F-22a: all that was asked in a turn of the loop had the time of the first.
    clock = Clock(datetime(2031, 6, 10, 12, tzinfo=UTC))
    plans = loads("""
        schema: 1
        currency: usd
        default_plan: free
        meters: {requests: {unit: request}}
        plans: {free: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: 1/hour}}}}
    """)
    async with MeterKit(plans, redis_url=any_store_url, clock=clock, store_timeout=10.0) as kit:
        await kit.consume("acme", "requests")

        async def advance_and_consume() -> bool:
            clock.advance(timedelta(hours=2))
            return (await kit.consume("acme", "requests")).allowed

        before, after = await asyncio.gather(kit.consume("acme", "requests"), advance_and_consume())
        assert (before.allowed, after) == (False, True)


def test_import_needs_no_extra() -> None:
    code = (
        "import sys, meterkit.testing as t; t.StripeEmulator().app; t.Clock();"
        "sys.exit(' '.join({'uvicorn', 'stripe', 'fakeredis', 'httpx'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_what_is_there_is_offered() -> None:
    import meterkit.testing as offered

    assert set(offered.__all__) == set(dir(offered))
    with pytest.raises(AttributeError, match="has no attribute 'Mock'; it has: BillLine, Clock"):
        _ = offered.Mock
