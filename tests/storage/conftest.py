"""moto's server of S3 and SQS, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from moto.server import ThreadedMotoServer

from drivers.delivery import NOW
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import Clock
from storage.moto_bucket import BOTO3
from storage.test_histories import PLANS


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def forget_all(moto: str) -> None:
    """All servers of a process have the same buckets and queues."""
    httpx.post(f"{moto}/moto-api/reset").raise_for_status()


@pytest.fixture
def address(moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, where boto3 takes queues from as well."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_SQS": moto,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    forget_all(moto)
    return moto


@pytest.fixture
def s3(address: str) -> Any:
    """A client of S3, where ``uploads`` is a bucket with versions."""
    client: Any = BOTO3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="uploads")
    client.put_bucket_versioning(Bucket="uploads", VersioningConfiguration={"Status": "Enabled"})
    return client


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
async def kit(clock: Clock) -> AsyncIterator[MeterKit]:
    endpoint = "http://127.0.0.1:9"  # Nothing is there.
    async with MeterKit(
        loads(PLANS), clock=clock, redis_url="memory://", flush=False, storage_endpoint=endpoint
    ) as kit:
        yield kit
