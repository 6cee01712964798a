"""``meterkit notify``: lists messages, has dead ones sent again, and shows how they look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.redrives import kill_message
from meterkit import MeterKit

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

pytestmark = pytest.mark.anyio


async def test_dead_messages_are_listed_and_redriven(stored: Shell, directory: Path, store_url: str) -> None:
    none = stored.run("notify", "list")
    assert (none.code, none.out) == (0, "")
    assert "no message waits or is dead" in none.err
    async with MeterKit(directory / "plans.yaml", redis_url=store_url, flush=False) as kit:
        for name in ("msg_a", "msg_b"):
            await kill_message(kit, name, "acme", "the receiver answers 500", event="credits.low")
        listed = stored.run("notify", "list")
        assert listed.code == 1
        for part in ("msg_a", "webhook", "credits.low", "acme", "dead", "the receiver answers 500"):
            assert part in listed.out
        one = stored.run("notify", "redrive", "msg_a", "msg_c")
        assert (one.code, one.out) == (1, "sent again: 1\n")
        assert "not dead: 1 of those" in one.err
        as_json = stored.run("notify", "list", "--json").json
        assert [(entry["id"], entry["state"]) for entry in as_json] == [
            ("msg_a", "waiting"),
            ("msg_b", "dead"),
        ]


async def test_a_preview_needs_no_store(stored: Shell) -> None:
    shown = stored.run("notify", "preview", "credits.low")
    assert shown.code == 0
    assert '"type": "credits.low"' in shown.out
    assert "Subject: 96 ai credits left" in shown.out
    unknown = stored.run("notify", "preview", "credits")
    assert unknown.code == 1
    assert "found 'credits'; allowed are usage.threshold" in unknown.err
