"""A plans file that changes is looked at until it has been the same twice."""

# Internals: the file is watched each few milliseconds, which no setting allows.

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faults.refusals import eventually
from meterkit.catalog.plans_file_watcher import WatchedPlans

pytestmark = pytest.mark.anyio
EVERY_S = 0.005


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path, text: str) -> None:
    """Put another file in its place, as editors do."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def link(path: Path, target: Path) -> None:
    """Put a link in its place."""
    other = path.with_suffix(".new")
    other.symlink_to(target)
    other.replace(path)


GOOD = """schema: 1
currency: usd
default_plan: {0}
meters: {{requests: {{unit: request}}}}
plans: {{{0}: {{price: {{amount_cents: 0, interval: month}}}}}}
"""


class Reader:
    """Reads the file each time that it is told to."""

    def __init__(self, path: Path) -> None:
        self.plans = WatchedPlans(path)
        self.path = path
        self.read: list[str] = []
        self.plans.read(lambda _: None)

    async def reload(self) -> None:
        self.plans.read(lambda catalog: self.read.append(catalog.default_plan))


@asynccontextmanager
async def watched(path: Path) -> AsyncGenerator[Reader]:
    reader = Reader(path)
    task = asyncio.create_task(reader.plans.watch(reader.reload, every_s=EVERY_S))
    yield reader
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "plans.yaml"
    write(found, GOOD.format("first"))
    return found


async def test_a_change_is_read_within_two_seconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-20h: the documentation says so, and it took up to four."""
    reader, waited_s = Reader(path), list[float]()

    async def pause(waiting: Coroutine[Any, Any, object], pause_s: float) -> None:
        waiting.close()
        if not waited_s:
            write(path, GOOD.format("later"))  # Just after it was checked: all of this pause counts.
        waited_s.append(pause_s)
        await asyncio.sleep(0)
        raise TimeoutError

    monkeypatch.setattr("meterkit.catalog.plans_file_watcher.wait_for", pause)
    pauses_s: list[float] = []

    async def reload() -> None:
        pauses_s.extend(waited_s)
        await reader.reload()

    task = asyncio.create_task(reader.plans.watch(reload))
    await eventually(lambda: reader.read == ["later"])
    task.cancel()
    await asyncio.wait([task])
    assert sum(pauses_s) == 2.0


async def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, GOOD.format(name))
    path = tmp_path / "link"
    link(path, tmp_path / "one")
    async with watched(path) as reader:
        link(path, tmp_path / "two")
        await eventually(lambda: reader.read == ["two"])


async def test_a_refusal_is_logged_once_until_a_change(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched(path) as reader:
        write(path, "schema: 2")
        await eventually(lambda: "has changed and is refused; the previous one stays in use" in caplog.text)
        remove(path)
        swap(path, GOOD.format("right"))
        await eventually(lambda: reader.read == ["right"])
        write(path, GOOD.format("later"))
        await eventually(lambda: reader.read == ["right", "later"])
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.name, record.levelname) for record in said] == [
        ("meterkit.plans", "ERROR"),
        ("meterkit.plans", "WARNING"),
    ]
    assert said[1].getMessage() == f"{path} is valid again and in use"  # The next change is no repair.


async def test_each_loss_of_the_file_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was logged while the file was missing, nor of a mistake that came back after its correction."""
    async with watched(path) as reader:
        for mistake in ("", "", "schema: 2", "schema: 2"):
            caplog.clear()
            if mistake:
                write(path, mistake)
            else:
                remove(path)
            await eventually(lambda: "has changed and is refused" in caplog.text)
            swap(path, GOOD.format("right"))
            await eventually(lambda: reader.read == ["right"])
            reader.read.clear()


async def test_a_change_while_the_file_is_read_is_found(path: Path) -> None:
    plans, read = WatchedPlans(path), list[str]()
    plans.read(lambda _: swap(path, GOOD.format("later")))

    async def reload() -> None:
        plans.read(lambda catalog: read.append(catalog.default_plan))

    watching = asyncio.create_task(plans.watch(reload, every_s=EVERY_S))
    await eventually(lambda: read == ["later"])
    watching.cancel()
    await asyncio.wait([watching])


async def test_sighup_reads_the_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # F-127: a server without a handler of its own was ended.
    path = tmp_path / "plans.yaml"
    write(path, GOOD.format("free"))
    reader = Reader(path)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it.
    monkeypatch.setattr(os, "isatty", list[int]().__contains__)
    watching = asyncio.create_task(reader.plans.watch(reader.reload, every_s=600))
    await eventually(lambda: signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGHUP)
    await eventually(lambda: len(reader.read) == 1)
    write(path, "schema: 2")
    for _ in range(2):  # Each SIGHUP has an answer.
        caplog.clear()
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: "is refused; the previous one stays in use" in caplog.text)
    watching.cancel()
    await asyncio.wait([watching])
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL
