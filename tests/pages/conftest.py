"""The operator pages over a snapshot of all customers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from httpx import AsyncClient

from drivers.operator_pages import pages_of, selling
from meterkit import MeterKit


@pytest.fixture
async def kit(store_url: str, tmp_path: Path) -> AsyncGenerator[MeterKit]:
    async with selling(store_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(kit: MeterKit) -> AsyncGenerator[AsyncClient]:
    async with pages_of(kit) as opened:
        yield opened
