"""A kit whose events a receiver of webhooks and a mailbox get, and its clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from drivers.messages import NOW, Mailbox, Receiver, kit_of, mailbox, receiver
from meterkit import MeterKit
from meterkit.testing import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def hook() -> AsyncGenerator[Receiver]:
    async with receiver() as opened:
        yield opened


@pytest.fixture
async def box() -> AsyncGenerator[Mailbox]:
    async with mailbox() as opened:
        yield opened


@pytest.fixture
async def kit(store_url: str, clock: Clock) -> AsyncGenerator[MeterKit]:
    async with kit_of(store_url, clock) as opened:
        yield opened


@pytest.fixture
async def mailing(store_url: str, clock: Clock, box: Mailbox) -> AsyncGenerator[MeterKit]:
    async with kit_of(store_url, clock, smtp_url=box.url) as opened:
        yield opened
