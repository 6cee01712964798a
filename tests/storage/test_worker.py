"""``meterkit worker --storage-queue``: a process of its own, against moto's S3 and SQS over HTTP."""

from __future__ import annotations

import signal
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Self

import anyio
import pytest

from drivers.command_line import TIMEOUT_S, Shell
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.testing import StripeEmulator
from storage.moto_bucket import BOTO3
from storage.objects import Happened, StorageUpkeep
from storage.test_histories import PLANS

pytestmark = pytest.mark.anyio

AT_MS: Final = 1_600_000_000_000
DELETES: Final = "AmazonSQS.DeleteMessageBatch"


class Gate(ThreadingHTTPServer):
    """Passes calls on to SQS, except the first that deletes messages: it waits, and is never passed on."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passed)
        self.behind = behind
        self.reached, self.dead = Event(), Event()

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.dead.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Passed(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        gate = self.server
        assert isinstance(gate, Gate)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["x-amz-target"] == DELETES and not gate.dead.is_set():
            gate.reached.set()
            gate.dead.wait(TIMEOUT_S)
            return
        passed = urllib.request.Request(gate.behind + self.path, body, dict(self.headers))  # noqa: S310
        with urllib.request.urlopen(passed, timeout=TIMEOUT_S) as answer:  # noqa: S310 - moto's address
            found = answer.read()
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.0")
        self.send_header("content-length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


@pytest.mark.dear("a worker in a process of its own, killed, and another one, at servers of S3 and SQS")
async def test_a_killed_worker_counts_once(address: str, s3: Any, store_url: str, tmp_path: Path) -> None:
    for key, size in (("ada/images/a", 900), ("ada/images/b", 50), ("bob/documents/a", 7)):
        s3.put_object(Bucket="uploads", Key=key, Body=b"x" * size)
    (tmp_path / "plans.yaml").write_text(PLANS)
    sqs: Any = BOTO3.client("sqs")
    queue = sqs.create_queue(QueueName="killed", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
    for key, size, number in (("ada/images/a", 900, 5), ("ada/images/b", 50, 6)):
        event = Happened.put(key, size, AT_MS + number, number)
        sqs.send_message(QueueUrl=queue, MessageBody=event.as_body("s3", "uploads").decode())
    with StripeEmulator().running() as stripe, Gate(address) as gate:
        shell = Shell(
            tmp_path,
            METERKIT_REDIS_URL=store_url,
            METERKIT_STRIPE_API_KEY="sk_test_1",
            METERKIT_STRIPE_API_BASE=stripe,
            METERKIT_STORAGE_ENDPOINT=address,
            AWS_ENDPOINT_URL_SQS=gate.url,
        )
        async with MeterKit(tmp_path / "plans.yaml", redis_url=store_url, flush=False) as kit:

            async def is_unread() -> bool:
                found = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])["Attributes"]
                return int(found["ApproximateNumberOfMessages"]) == 0

            await StorageUpkeep(kit.store).record_listing({})  # Only events may count: no listing is due.
            with shell.running("worker", "--storage-queue", queue) as worker:
                assert await anyio.to_thread.run_sync(gate.reached.wait, TIMEOUT_S)
                worker.send_signal(signal.SIGKILL)
                assert worker.wait(TIMEOUT_S) == -signal.SIGKILL
            counted = await kit.gauges.get("ada", "storage")
            assert counted in {50, 900, 950}  # SQS may give fewer messages than there are.
            assert not await is_unread()
            gate.dead.set()
            with shell.running("worker", "--storage-queue", queue) as worker:
                await eventually(is_unread)
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(TIMEOUT_S) == 0
            assert await kit.gauges.get("ada", "storage") == 950
            assert (await StorageUpkeep(kit.store).read_state()).read_ms is not None
            assert shell.run("storage", "recalculate", "--json").json == {"bob": 7}
            usage = {name: (await kit.usage(name))["meters"]["storage"] for name in ("ada", "bob")}
    assert [one.get("types") for one in usage.values()] == [
        {"documents": 0, "images": 950, "other": 0},
        {"documents": 7, "images": 0, "other": 0},
    ]
