"""Tests of an app, as the page on testing shows them, run by pytest in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
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

KIT = MeterKit("plans.yaml", redis_url="memory://", flush=False)


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
    assert set(FILES) == {
        "conftest.py",
        "shop.py",
        "test_sync.py",
        "test_async.py",
        "test_subscriptions.py",
        "test_billing.py",
        "test_webhooks.py",
    }
    files = {**FILES, "plans.yaml": PLANS, "test_leaks.py": LEAKS, "pytest.ini": "[pytest]\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        # looptime's plugin is for pytest-asyncio: it fails without it.
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:looptime_plugin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "17 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.anyio
@pytest.mark.parametrize("year", [1971, 1999, 2020, 2040])
async def test_a_clock_may_stand_anywhere_in_memory(year: int) -> None:
    """F-64: a past clock counted nothing."""
    clock = Clock(datetime(year, 1, 1, tzinfo=UTC))
    async with MeterKit(
        loads(PLANS), redis_url="memory://", key_prefix=uuid4().hex, clock=clock, flush=False
    ) as kit:
        assert [True, True, False] == [(await kit.consume("ada", "requests")).allowed for _ in range(3)]
        clock.advance(timedelta(days=31))
        assert [True, True, False] == [(await kit.consume("ada", "requests")).allowed for _ in range(3)]
        clock.advance(-timedelta(days=400))
        assert [True, True, False] == [(await kit.consume("eve", "requests")).allowed for _ in range(3)]
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
    async with MeterKit(
        loads(PLANS), redis_url="memory://", key_prefix=uuid4().hex, clock=Clock(), flush=False
    ) as kit:
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
