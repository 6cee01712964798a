"""Random histories of a bucket of moto, over HTTP: the level equals the listing of the server to the byte.

A sample of them; 200 with ``METERKIT_HISTORIES=200``.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from storage.moto_bucket import BOTO3, MotoBucket
from storage.objects import FORMATS
from storage.test_histories import PLANS, bucket_of, one_history

pytestmark = pytest.mark.anyio

HISTORIES: Final = int(os.environ.get("METERKIT_HISTORIES", "1"))


@pytest.mark.dear("a history over HTTP, at a server of S3")
@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_a_history_over_http_is_counted_to_the_byte(
    address: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BOTO3, "DEFAULT_SESSION", None)
    model = bucket_of(1000 + seed)
    model.name = f"history{seed}"
    plans = loads(PLANS.replace("bucket: uploads", f"bucket: {model.name}"))
    async with MeterKit(
        plans, clock=Clock(NOW), redis_url="memory://", flush=False, storage_endpoint=address
    ) as kit:
        await one_history(kit, MotoBucket.made(address, model), FORMATS[seed % len(FORMATS)])
