"""The examples run, as their README says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from commands import Shell

if TYPE_CHECKING:
    from collections.abc import Generator

EXAMPLE = Path(__file__).parents[1] / "examples" / "fastapi_basic"
READY_S = 60.0


@contextmanager
def served(directory: Path, store_url: str) -> Generator[httpx.Client]:
    """A client of the example, which runs under uvicorn."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = ("-m", "uvicorn", "app:app", "--fd", str(listener.fileno()), "--log-level", "warning")
        with subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env=os.environ | {"METERKIT_REDIS_URL": store_url},
            pass_fds=[listener.fileno()],
        ) as process:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=READY_S) as client:
                    wait_until_ready(client)
                    yield client
            finally:
                process.terminate()


def wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            client.get("/healthz").raise_for_status()
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_the_fastapi_example_meters_limits_and_changes_plans(store_url: str) -> None:
    ada = {"x-customer-id": "ada"}
    shell = Shell(EXAMPLE, METERKIT_REDIS_URL=store_url)
    with served(EXAMPLE, store_url) as client:
        answers = [client.post("/translate", json={"text": "hello world"}, headers=ada) for _ in range(6)]
        assert [200, 200, 200, 200, 200, 429] == [answer.status_code for answer in answers]
        assert answers[0].json() == {"text": "olleh dlrow", "words": 2}
        assert '"requests-1m";q=5;w=60' in answers[0].headers["ratelimit-policy"]
        assert answers[5].json()["violated-policies"] == ["requests-1m"]
        assert int(answers[5].headers["retry-after"]) >= 1

        assert client.put("/glossaries/g", json={}, headers=ada).status_code == 403
        assert client.post("/translate", json={"text": "x"}).status_code == 401

        assert shell.run("customers", "set-plan", "ada", "pro").code == 0
        assert client.put("/glossaries/g", json={"hello": "ciao"}, headers=ada).status_code == 204
        translated = client.post("/translate", json={"text": "hello", "glossary": "g"}, headers=ada)
        assert translated.json() == {"text": "ciao", "words": 1}
        me = client.get("/me", headers=ada).json()
    assert ("ada", "pro", 11) == (me["customer"], me["plan"], me["meters"]["words"]["used"])
    usage = shell.run("usage", "ada", "--json").json["meters"]
    assert (11, 8) == (usage["words"]["recorded"], usage["requests"]["recorded"])
