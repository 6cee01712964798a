"""A process that is killed between any two steps loses no message and makes no second one."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Final, Literal

import pytest

from drivers.forked_command import forks
from drivers.messages import NOW, STEPS, Life, deliver, kit_of, mailbox, pass_over, receiving_server
from drivers.sampled import whole
from faults.crashes import SharedClock
from servers.stores import Server

pytestmark = pytest.mark.anyio


SOME: Final = (("webhook", "finish"), ("email", "send"))


@pytest.mark.parametrize(
    ("channel", "step"),
    [
        (channel, step) if (channel, step) in SOME else whole(channel, step)
        for channel in STEPS
        for step in STEPS[channel]
    ],
)
@pytest.mark.dear("two processes are killed")
async def test_each_cause_has_one_id_whatever_process_is_killed(
    channel: str, step: str, valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.store.customer_notices.AGAIN_AFTER_MS", 0)
    clock = SharedClock(tmp_path / "clock", NOW.timestamp())
    whens: tuple[Literal["before", "after"], ...] = ("before", "after")
    async with (
        receiving_server() as hook,
        mailbox() as box,
        kit_of(valkey.url, clock, url=hook.url, smtp_url=box.url) as kit,
    ):
        for when in whens:
            await kit.record(when, "requests", 5)
            life: Life = {
                "store": valkey.url,
                "url": hook.url,
                "smtp_url": box.url,
                "clock": str(tmp_path / "clock"),
                "channel": channel,
                "step": step,
                "when": when,
            }
            process = forks().Process(target=deliver, args=(life,))
            process.start()
            await asyncio.to_thread(process.join)
            assert -signal.SIGKILL == process.exitcode
            clock.advance(61)  # Longer than a message is one process's.
            await pass_over(kit, channel, channel)
            got = hook.ids if channel == "webhook" else [str(mail["Message-ID"]) for mail in box.mails]
            # Only the end of sending is a step after which a receiver may see a repeat.
            repeats = (step, when) in {("send", "after"), ("finish", "before")}
            assert (len(got), len(set(got))) == (1 + repeats, 1)
            hook.posts.clear()
            box.mails.clear()
        assert {"webhook": [], "email": []} == await kit.notify.list()
