"""``python -m stripe_emulator``, and the tests that its README shows."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

README = Path(__file__).parents[2] / "src" / "stripe_emulator" / "README.md"
COMMAND = (sys.executable, "-m", "stripe_emulator")


@contextmanager
def started(*options: str, lines: int = 1) -> Generator[dict[str, str]]:
    """Start the emulator as a process; yield the settings that it prints."""
    process = subprocess.Popen([*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield dict(process.stdout.readline().strip().split("=", 1) for _ in range(lines))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_command_serves_the_described_account() -> None:
    options = ("--meter", "tokens", "--customer", "cus_ada", "--clock", "2026-04-01T02:00:00+02:00")
    with started(*options, "--forward-to", "http://127.0.0.1:9/hooks", lines=2) as settings:
        assert settings["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
        with httpx.Client(base_url=settings["STRIPE_API_BASE"], auth=("sk_test_1", "")) as client:
            assert client.get("/v1/customers/cus_ada").json()["created"] == 1_775_001_600
            (meter,) = client.get("/v1/billing/meters").json()["data"]
            (endpoint,) = client.get("/_emulator/endpoints").json()["endpoints"]
    assert (meter["event_name"], endpoint["url"]) == ("tokens", "http://127.0.0.1:9/hooks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), "must be from 0 to 65535"),
        (("--clock", "2026-04-01"), "has no time zone: write it like 2026-04-01T00:00:00Z"),
        (("--meter", "tokens", "--meter", "tokens"), "already an active meter with the event name tokens"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, ...], message: str) -> None:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_port_in_use_is_named() -> None:
    with started() as settings:
        port = settings["STRIPE_API_BASE"].rpartition(":")[2]
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False)
    assert f"cannot listen on 127.0.0.1:{port}: " in done.stderr


@pytest.mark.dear("the tests of the README are run by a pytest of their own")
def test_the_tests_of_the_readme_pass(tmp_path: Path) -> None:
    (name, text) = next(
        iter(re.findall(r"^```py\n# (\S+)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    )
    (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    plugins = ("-p", "no:cacheprovider", "-p", "no:looptime_plugin")
    command = [sys.executable, "-m", "pytest", "-q", *plugins]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
