"""moto's server of S3 and SQS, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Iterator


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
