"""``meterkit usage --all``: every customer that has used something, of this period and of past ones."""
# Internals: periods that are over, which the command reads by the clock of the day.

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from meterkit import MeterKit
from meterkit.customers.sorting import customers_with_counts
from meterkit.customers.usage import usage_of_all
from meterkit.testing import Clock

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_every_customer_with_usage_is_shown_sorted_and_once(
    stored: Shell, directory: Path, store_url: str
) -> None:
    names = sorted(f"customer {nth:03} é" for nth in range(130))
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for nth, name in enumerate(names):
            await kit.record(name, "tokens", nth + 1)
        await kit.customers.set_plan("idle", "pro")  # It has a state, and no usage.
        said = [await kit.usage(name) for name in names]
    done = stored.run("usage", "--all", "--json")
    assert names == [found["customer"] for found in done.json]
    assert [found["meters"] for found in said] == [found["meters"] for found in done.json]

    rows = list(csv.DictReader(StringIO(stored.run("usage", "--all", "--csv").out)))
    assert [(name, meter) for name in names for meter in ("requests", "tokens")] == [
        (row["customer"], row["meter"]) for row in rows
    ]
    assert ("130", "120", "unlimited", "") == tuple(
        rows[-1][name] for name in ("used", "overage", "remaining", "status")
    )
    table = stored.run("usage", "--all").out
    assert all(name in table for name in names)
    assert "idle" not in table


async def test_where_nobody_has_used_anything_it_says_so(stored: Shell) -> None:
    done = stored.run("usage", "--all")
    assert (0, "", True) == (done.code, done.out, "no customer has used anything" in done.err)
    assert [] == stored.run("usage", "--all", "--json").json
    assert 1 == len(stored.run("usage", "--all", "--csv").out.splitlines())


async def test_one_of_customer_and_all_is_asked_for(stored: Shell) -> None:
    for arguments in ([], ["ada", "--all"], ["--all", "--csv", "--json"], ["ada", "--period", "soon"]):
        assert 2 == stored.run("usage", *arguments).code


async def used(kit: MeterKit, at: datetime) -> dict[str, int]:
    at_ms = int(at.timestamp() * 1000)
    pages = [page async for page in usage_of_all(kit.store, at_ms=at_ms)]
    return {found["customer"]: found["meters"]["tokens"]["recorded"] for page in pages for found in page}


async def test_past_periods_are_shown_as_they_were_counted(any_store_url: str, directory: Path) -> None:
    clock = Clock(datetime(2099, 9, 10, tzinfo=UTC))
    september = clock.now()
    async with MeterKit(
        directory / "plans.yaml", redis_url=any_store_url, clock=clock, flush=False, key_prefix="other"
    ) as kit:
        await kit.record("ada", "tokens", 12)
        await kit.record("bob", "tokens", 3)
        clock.advance(timedelta(days=30))
        october = clock.now()
        await kit.record("ada", "tokens", 5)  # Closes her September; nothing has closed Bob's.
        assert {"ada": 5} == await used(kit, october)
        assert {"ada": 12, "bob": 3} == await used(kit, september)
        assert {} == await used(kit, september - timedelta(days=60))
        async with customers_with_counts(kit.store) as customers:
            assert [["ada"], ["bob"]] == [names async for names in customers.names(1)]
        (ada, bob) = await kit.store.usage_of_many(["ada", "bob"], at_ms=int(september.timestamp() * 1000))
        for found in (ada, bob):
            assert ("2099-09-01T00:00:00Z", datetime(2099, 10, 1, tzinfo=UTC)) == (
                found["period"]["id"],
                found["period"]["end"],
            )
            tokens = found["meters"]["tokens"]
            assert tokens["recorded"] == tokens["unlinked"] == tokens["used"]
            assert (0, 0, 0) == (tokens["included"], tokens["remaining"], tokens["held"])
        assert 2 == ada["meters"]["tokens"]["overage"]
