"""A kit that is alone with its store, and its clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import kit_alone
from meterkit import MeterKit
from meterkit.testing import Clock


@pytest.fixture
async def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def kit(clock: Clock) -> AsyncGenerator[MeterKit]:
    async with kit_alone(clock=clock) as kit:
        yield kit
