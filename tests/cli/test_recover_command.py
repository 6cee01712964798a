"""``meterkit recover``: what a restore has parked or lost is shown and settled."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from drivers.redrives import recorded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from drivers.command_line import Shell
    from meterkit import MeterKit

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def restored(stored: Shell, directory: Path, store_url: str) -> AsyncGenerator[MeterKit]:
    """A kit whose store says that a restore has parked 25 tokens of acme's."""
    async with recorded(stored, directory, store_url) as (kit, emulator):
        emulator.add_customer("cus_acme")
        emulator.fail_next("error", status=401, path="/v1/billing/meter_events")
        await kit.flush(everything=True, timeout_s=0)
        (intent,) = await kit.outbox.list()
        await kit.outbox.park(intent.identifier)
        now_ms = kit.store.now_ms()
        key = kit.store.keys.shard(kit.store.keys.customer("acme").shard, "intents")
        admin = await kit.store.admin()
        text = await admin.ask(admin.client.hget(key, intent.identifier))
        marks = {"restored": f"{now_ms - 60_000}-{now_ms}", "why": "this may be among them"}
        kept = json.dumps({**json.loads(text), **marks})
        await admin.ask(admin.client.hset(key, intent.identifier, kept))
        yield kit


async def test_f121_what_a_restore_has_parked_is_shown_and_settled(
    stored: Shell, directory: Path, store_url: str
) -> None:
    async with restored(stored, directory, store_url) as kit:
        left = stored.run("outbox", "redrive", "--all")
        assert (left.code, left.out, "1 parked after a restore stay so" in left.err) == (0, "", True)
        would = stored.run("recover", "--dry-run")
        assert (would.code, "nothing was changed: --dry-run" in would.err) == (1, True)
        assert would.out.splitlines()[-1].split() == ["acme", "tokens", "25", "0", "0", "25"]
        assert [one.state for one in await kit.outbox.list()] == ["parked"]
        done = stored.run("recover", "--json")
        (row,) = done.json["recovered"]
        assert (done.code, row["sent"], done.json["rebuilt"]) == (0, 25, [])
        again = stored.run("recover")
        assert (again.code, again.out) == (0, "")
        assert "nothing that a restore has parked waits" in again.err
        # A backup of that instant was put back: all that waits is compared, by whoever delivers.
        doubted = stored.run("recover", "--since", "2026-01-01T00:00:00Z")
        assert (doubted.code, "still wait for their comparison with Stripe" in doubted.err) == (1, True)
        assert stored.run("recover", "--since", "yesterday").code == 2
