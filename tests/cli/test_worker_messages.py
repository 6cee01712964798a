"""``meterkit worker`` sends webhooks, and e-mails to where the app's function says."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from drivers.command_line import TIMEOUT_S, Shell
from drivers.messages import PLANS, SECRET, mailbox, receiving_server
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

PEOPLE = """
from meterkit import Contact

nobody = None


async def contact(customer):
    return Contact(f"{customer}@example.org", "Ada")
"""


@pytest.mark.dear("a worker is started")
async def test_the_worker_sends_messages_by_both_channels(tmp_path: Path, store_url: str) -> None:
    (tmp_path / "people.py").write_text(PEOPLE)
    async with receiving_server() as hook, mailbox() as box:
        (tmp_path / "plans.yaml").write_text(PLANS.format(url=hook.url))
        async with MeterKit(tmp_path / "plans.yaml", redis_url=store_url, flush=False) as kit:
            await kit.record("acme", "requests", 5)
        with StripeEmulator().running() as stripe:
            shell = Shell(
                tmp_path,
                METERKIT_REDIS_URL=store_url,
                METERKIT_STRIPE_API_KEY="sk_test_1",
                METERKIT_STRIPE_API_BASE=stripe,
                METERKIT_NOTIFY_SECRET=SECRET,
                METERKIT_SMTP_URL=box.url,
            )
            with shell.running("worker", "--contact", "people:contact") as worker:
                await eventually(lambda: bool(hook.posts and box.mails))
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
        assert ["acme@example.org"] == [mail["To"].addresses[0].addr_spec for mail in box.mails]
