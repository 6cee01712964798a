from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.delivery import desk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from drivers.delivery import Desk


@pytest.fixture
async def at(store_url: str) -> AsyncGenerator[Desk]:
    """A kit of the common plans file, and its Stripe."""
    async with desk(store_url) as opened:
        yield opened
