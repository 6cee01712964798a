"""A process that is killed between any two steps loses no message and makes no second one."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Literal

import pytest

from crash_process import SharedClock
from forked_command import forks
from messages_process import STEPS, Life, deliver
from messaging import NOW, kit_of, pass_over, receiver

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("step", STEPS)
async def test_each_cause_has_one_webhook_id_whatever_process_is_killed(
    step: str, valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.store.notices.AGAIN_AFTER_MS", 0)
    clock = SharedClock(tmp_path / "clock", NOW.timestamp())
    whens: tuple[Literal["before", "after"], ...] = ("before", "after")
    async with receiver() as hook, kit_of(valkey.url, clock, url=hook.url) as kit:
        for when in whens:
            await kit.record(when, "requests", 5)
            life: Life = {
                "store": valkey.url,
                "url": hook.url,
                "clock": str(tmp_path / "clock"),
                "step": step,
                "when": when,
            }
            process = forks().Process(target=deliver, args=(life,))
            process.start()
            await asyncio.to_thread(process.join)
            assert -signal.SIGKILL == process.exitcode
            clock.advance(61)  # Longer than a message is one process's.
            await pass_over(kit, "webhook", "webhook")
            # Only the end of a post is a step after which a receiver may see a repeat.
            repeats = (step, when) in {("post", "after"), ("finish", "before")}
            assert 1 + repeats == len(hook.posts)
            assert 1 == len(set(hook.ids))
            hook.posts.clear()
        assert [] == (await kit.notify.list())["webhook"]
