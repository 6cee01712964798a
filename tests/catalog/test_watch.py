"""A plans file that changes is looked at until it has been the same twice."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from faults import eventually
from meterkit.catalog.watch import watch
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio
EVERY_S = 0.005


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def read(path: Path) -> str:
    return path.read_text()


def link(path: Path, target: Path) -> None:
    """Put a link in its place."""
    other = path.with_suffix(".new")
    other.symlink_to(target)
    other.replace(path)


class Reader:
    """Reads the file each time that it is told to; refuses what says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[str] = []

    async def reload(self) -> None:
        self.read.append(read(self.path))
        if self.read[-1] == "bad":
            raise MeterkitError("plans.yaml:1:1 it is bad")


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncGenerator[Reader]:
    path = tmp_path / "plans.yaml"
    write(path, "first")
    found = Reader(path)
    task = asyncio.create_task(watch(path, found.reload, every_s=EVERY_S))
    await asyncio.sleep(2 * EVERY_S)
    yield found
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def swap(path: Path, text: str) -> None:
    """Put another file in its place, as editors do."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


@pytest.mark.parametrize("put", [write, swap])
async def test_each_change_is_read_once(reader: Reader, put: Callable[[Path, str], object]) -> None:
    for nth in range(3):
        text = f"other {nth}" * (nth + 1)
        put(reader.path, text)
        await eventually(lambda: len(reader.read) == nth + 1)  # noqa: B023 - it is over before the next turn
        assert reader.read[-1] == text


async def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, name)
    path = tmp_path / "link"
    link(path, tmp_path / "one")
    found = Reader(path)
    task = asyncio.create_task(watch(path, found.reload, every_s=EVERY_S))
    await asyncio.sleep(2 * EVERY_S)
    link(path, tmp_path / "two")
    await eventually(lambda: found.read == ["two"])
    task.cancel()
    await asyncio.wait([task])


async def test_what_is_refused_is_said_and_the_next_change_is_read(
    reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    write(reader.path, "bad")
    await eventually(lambda: len(reader.read) == 1)
    remove(reader.path)
    swap(reader.path, "right again")
    await eventually(lambda: len(reader.read) == 2)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in said] == ["meterkit.plans"]
    assert "is refused; the one before holds: plans.yaml:1:1 it is bad" in said[0].getMessage()
