"""The clock of upper bounds runs late where the event loop does, and only there."""

from __future__ import annotations

import asyncio
import time

import pytest

from faults.refusals import loop_clock

pytestmark = pytest.mark.anyio


async def test_it_stands_still_while_the_loop_does_and_goes_on_with_it() -> None:
    async with loop_clock() as passed_s:
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - as if the machine had run something else
        await asyncio.sleep(0)
        assert passed_s() < 0.05
        while passed_s() < 0.05:  # noqa: ASYNC110 - the clock has no event
            await asyncio.sleep(0.01)
