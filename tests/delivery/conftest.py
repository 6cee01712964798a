from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from drivers.delivery import Desk, desk


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Desk]:
    async with desk(store_url) as opened:
        yield opened
