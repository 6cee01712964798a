"""The embedded server on a disk that is full: in a namespace with a small file system of its own."""

# Internals: the server within the process has no other seam on a disk that is full.

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from faults.small_disk import run_on_a_small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGIN: Final = """
import asyncio
from pathlib import Path
from meterkit import MeterKit
from meterkit.catalog import loads
from meterkit.errors import MeterkitError
from meterkit.redis import embedded
from meterkit.redis.embedded import EmbeddedServer

embedded._START_S = 3600.0  # Longer than this program may take: what waited for the server would not end.

CATALOG = loads('''
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
''')
URL = f"embedded://{Path.cwd()}/store"
"""
FULL_FROM_THE_BEGINNING: Final = (
    BEGIN
    + """
fill()
for _ in range(2):  # With what the first try has left, too.
    try:
        EmbeddedServer("store").start()
    except MeterkitError as error:
        print(error)
FILLED.unlink()
server = EmbeddedServer("store")
server.start()
server.stop()
print("served")
"""
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: in the namespace nobody has another, which would shorten a socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def test_a_server_that_has_no_room_to_start_is_said_to_have_none(folder: Path) -> None:
    # F-69: "its log says: nothing", as there was no room for a log either; or a traceback.
    told = run_on_a_small_disk(folder, FULL_FROM_THE_BEGINNING)
    why = (
        f"the embedded server in {folder}/store cannot run: its disk is full; make room, or name a"
        " directory on another disk"
    )
    assert [why, why, "served"] == told
