"""The operator pages over a snapshot of all customers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from drivers.operator_pages import pages_of, selling

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from httpx import AsyncClient

    from meterkit import MeterKit


@pytest.fixture
async def kit(store_url: str, tmp_path: Path) -> AsyncGenerator[MeterKit]:
    async with selling(store_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(kit: MeterKit) -> AsyncGenerator[AsyncClient]:
    """An operator's."""
    async with pages_of(kit) as opened:
        yield opened
