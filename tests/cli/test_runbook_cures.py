"""Each command that the runbook and ``doctor`` name as a cure is run with a Stripe key, and without one."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from moto.server import ThreadedMotoServer

from drivers.audited_kit import sqlite_in
from drivers.command_line import TIMEOUT_S, InProcessShell
from drivers.delivery import STRIPE_KEY
from drivers.emulated_account import reached
from drivers.kit_parts import is_upkeep_seen
from drivers.plans import plans_text
from drivers.spools import spool_with
from faults.refusals import eventually
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator
from storage.moto_bucket import BOTO3

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ("runbook", "troubleshooting", "reliability", "deployment")
PLANS: Final = plans_text("runbook_cures")
WITHOUT_STRIPE: Final = PLANS.replace(", stripe: {event_name: ai_tokens, report: usage}", "").replace(
    ", stripe_price: price_pro", ""
)
APP: Final = """
from starlette.applications import Starlette
from starlette.routing import Route

app = Starlette(routes=[Route("/words", print)])
"""
GIVEN: Final = {
    # What a reader puts in the place of a word.
    "CUSTOMER": "acme",
    "STRIPE_CUSTOMER": "cus_acme",
    "cus_…": "cus_acme",
    "DAY": datetime.now(UTC).date().isoformat(),
    "DATE": datetime.now(UTC).date().isoformat(),
    "MONTH": datetime.now(UTC).strftime("%Y-%m"),
    "KIND": "user",
    "METER": "tokens",
    "FROM": "gone",
    "TO": "pro",
    "user=USER": "user=u_1",
    "usd=N": "usd=5",
    "DISPUTE": "dp_1",
    "MODULE:APP": "main:app",
    "…": "mended",
}
IN_FULL: Final = {
    # Commands that a sentence shortens.
    "customers link": "customers link CUSTOMER STRIPE_CUSTOMER",
    "grants add": "grants add acme tokens=5 --id gift",
    "revenue": "revenue --from DAY",
}
NEEDS_STRIPE: Final = (
    *("flush", "recover", "reconcile", "stripe sync", "worker"),
    *("subscriptions cancel", "subscriptions check", "subscriptions repair"),
)
"""Commands that are wrong usage without a key: they name the setting."""
LEFT_UNDONE: Final = (
    # Exit 1 as there is nothing here that they could cure, as they find something, or as usage is not due.
    *("doctor", "webhooks redrive", "revenue", "recover", "audit rebuild", "flush"),
)
BOTH: Final = pytest.mark.parametrize(
    "plans", [pytest.param(PLANS, id="meters for Stripe"), pytest.param(WITHOUT_STRIPE, id="none")]
)


def quoted(text: str) -> set[str]:
    """The commands that a text names, in words or to copy."""
    found: list[str] = re.findall(r"(?:`|^\$ )meterkit ([a-z][^`\n]*)(?:`|$)", text, re.MULTILINE)
    return {line.strip() for line in found}


def cures_of_doctor() -> set[str]:
    """The commands that findings name."""
    modules = (ROOT / "src" / "meterkit" / "health").glob("*.py")
    nodes = (node for path in modules for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    bare = {
        text.removeprefix("meterkit ") for text in texts if re.fullmatch(r"meterkit [a-z]+ .*[A-Z]", text)
    }
    return quoted("\n".join(texts)) | bare


def all_cures() -> list[str]:
    """The commands of the pages, and those that findings name, as a reader types them."""
    pages = (ROOT.joinpath("docs", f"{page}.md").read_text("utf-8") for page in PAGES)
    lines = set[str]().union(*map(quoted, pages), cures_of_doctor())
    typed = {" ".join(GIVEN.get(word, word) for word in IN_FULL.get(line, line).split()) for line in lines}
    # A worker runs until it is stopped; its own tests stop it.
    return sorted(line for line in typed if not line.startswith("worker"))


def is_one_of(line: str, commands: tuple[str, ...]) -> bool:
    """Whether a line runs one of these commands; ``flush --all`` is not ``flush``."""
    return any(line == one or (line.startswith(f"{one} ") and one != "flush") for one in commands)


@pytest.fixture(scope="module")
def objects() -> Iterator[str]:
    """An object store and queues; the address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@pytest.fixture
def emulator() -> StripeEmulator:
    """An account that sells the plans."""
    emulator = StripeEmulator()
    emulator.add_meter("ai_tokens")
    emulator.add_price(1000, price_id="price_pro", product=emulator.add_product("Pro"))
    emulator.add_payment_method(emulator.add_customer("cus_acme"), "pm_card_visa")
    return emulator


@pytest.fixture
def directory(
    tmp_path: Path, store_url: str, objects: str, emulator: StripeEmulator, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where the commands run: with a plans file, an app, an audit log, an object and a spool left behind."""
    (tmp_path / "main.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION"):
        monkeypatch.setenv(f"AWS_{name}", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", objects)
    client: Any = BOTO3.client("s3", endpoint_url=objects)
    client.create_bucket(Bucket="uploads")
    client.put_object(Bucket="uploads", Key="acme/a", Body=b"12345")
    with emulator.running() as url:
        for name, value in {
            "REDIS_URL": store_url,
            "STRIPE_API_BASE": url,
            "AUDIT_URL": sqlite_in(tmp_path),
            "SPOOL_DIR": str(tmp_path / "spool"),
            "STORAGE_ENDPOINT": objects,
            "START_TIMEOUT": "60",
        }.items():
            monkeypatch.setenv(f"METERKIT_{name}", value)
        yield tmp_path


def run(line: str) -> tuple[int, str]:
    """Run a command; the exit code, and what it prints."""
    done = InProcessShell(Path.cwd(), **os.environ).run(*shlex.split(line))
    return done.code, done.out + done.err


def run_json(line: str) -> Any:
    done = InProcessShell(Path.cwd(), **os.environ).run(*shlex.split(line), "--json")
    assert done.code == 0, done.err
    return done.json


def leave_spool(directory: Path, plans: str) -> Path:
    """Write the plans file, and the spool of a process that is gone."""
    (directory / "plans.yaml").write_text(plans)
    file = spool_with(MeterKit("plans.yaml", flush=False), directory / "spool", "tokens", 7)
    file.close()
    return file.path


def used(what: str) -> Any:
    return run_json("usage acme")["meters"][what]["recorded"]


async def subscribe(url: str) -> None:
    """Have a subscription at Stripe."""
    async with reached(url, key=STRIPE_KEY, timeout_s=300.0) as client:
        await client.v1.subscriptions.create_async(
            {"customer": "cus_acme", "items": [{"price": "price_pro"}]}
        )


def test_the_commands_are_found() -> None:
    assert len(all_cures()) > 40
    assert {"flush --all", "customers link acme cus_acme", "storage recalculate acme"} <= set(all_cures())


@pytest.mark.dear("sixty commands are run")
def test_with_a_key_each_cure_is_done(
    directory: Path, emulator: StripeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERKIT_STRIPE_API_KEY", STRIPE_KEY)
    asyncio.run(subscribe(os.environ["METERKIT_STRIPE_API_BASE"]))
    (directory / "plans.yaml").write_text(PLANS)
    # Others need a linked customer with a subscription.
    assert run("customers link acme cus_acme")[0] == 0
    spool = leave_spool(directory, PLANS)
    for line in all_cures():
        code, said = run(line)
        assert (line, code) in {(line, 0), (line, int(is_one_of(line, LEFT_UNDONE)))}, said
    assert (spool.exists(), used("tokens"), used("disk")) == (False, 7, 5)
    assert emulator.accepted("cus_acme", "ai_tokens") == 7
    assert run_json("subscriptions show acme")["cancel_at_period_end"] is True


@BOTH
@pytest.mark.dear("sixty commands are run")
@pytest.mark.whole
def test_without_a_key_each_cure_is_done_or_names_the_setting(
    directory: Path, monkeypatch: pytest.MonkeyPatch, plans: str
) -> None:
    """F-20k: `flush --all` was wrong usage, and the spool stayed where it was."""
    spool = leave_spool(directory, plans)
    monkeypatch.delenv("METERKIT_STRIPE_API_KEY", raising=False)
    # First, as a linked customer's usage waits for a key. What needs none is run by the test above.
    for line in ("flush --all", "storage recalculate acme", "customers link acme cus_acme"):
        assert run(line)[0] == 0
    for line in all_cures():
        if is_one_of(line, NEEDS_STRIPE):
            code, said = run(line)
            assert (line, code) == (line, 2)
            assert "set METERKIT_STRIPE_API_KEY" in said
    assert (spool.exists(), used("tokens"), used("disk")) == (False, 7, 5)


@pytest.mark.anyio
@BOTH
@pytest.mark.dear("a worker is started")
@pytest.mark.whole
async def test_a_worker_without_a_key_reads_queue_and_buckets(
    directory: Path, store_url: str, objects: str, plans: str
) -> None:
    # F-22a: where a meter goes to Stripe, a worker for the queue alone wanted its key.
    (directory / "plans.yaml").write_text(plans)
    client: Any = BOTO3.client("sqs", endpoint_url=objects)
    queue = client.create_queue(QueueName="uploads")["QueueUrl"]
    client.send_message(QueueUrl=queue, MessageBody="{}")  # So that the worker need not wait for one.
    async with MeterKit(loads(plans), redis_url=store_url, flush=False) as kit:

        async def is_done() -> bool:
            return await is_upkeep_seen(kit)

        shell = InProcessShell(directory, METERKIT_REDIS_URL=store_url, METERKIT_STORAGE_ENDPOINT=objects)
        with shell.running("worker", "--storage-queue", queue) as worker:
            assert "no Stripe key is set, so nothing is delivered; stop with Ctrl-C\n" in worker.stderr
            await eventually(is_done)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(TIMEOUT_S) == 0
        assert await kit.gauges.get("acme", "disk") == 5
