"""A spool and an embedded server on a disk that is full: in a namespace with a small file system."""

# Internals: sizes of a spool and timeouts of an embedded server are constants.

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from faults.small_disk import run_on_a_small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.stores import Server

TESTS: Final = Path(__file__).parents[1]
BEGIN: Final = """
import asyncio, logging, sys
sys.path[:0] = [{tests!r}]
from faults.refusals import Client, eventually, kit_at, metered, settled, used
from meterkit.redis import producer
from meterkit.store import spool
from faults.proxy import TcpProxy

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
producer._SPILL_AFTER_S = 0.05
spool._WRITTEN_AT_ONCE_MAX = 30

def spooled():
    return sum(path.stat().st_size for path in Path("spools").glob("*.spool"))
"""
FULL: Final = """
async def main():
    given = {{"store_timeout": 0.1, "spool_dir": Path("spools")}}
    async with TcpProxy({port}) as proxy, kit_at(proxy.url, **given) as kit:
        app, lane = metered(kit), await kit.store.lane()
        assert await Client(app).get("acme") == 200
        await settled(kit)
        fill()
        await proxy.set("refuse")
        await eventually(lambda: lane.is_away)
        print({{await Client(app).get("acme") for _ in range(200)}})
        await asyncio.sleep(0.5)
        print("spooled", spooled(), "waiting", lane.unsettled, "lost", lane.lost)
        FILLED.unlink()
        await eventually(lambda: spooled() > 5_000)
        print("on disk")
        await proxy.set("pass")
        await settled(kit)
        print("recorded", (await used(kit, "acme"))[0], "lost", lane.lost)
        await eventually(lambda: not spooled())
        # Once more, and the store is back before there is room.
        fill()
        await proxy.set("refuse")
        await eventually(lambda: lane.is_away)
        print({{await Client(app).get("acme") for _ in range(50)}})
        await asyncio.sleep(0.3)
        await proxy.set("pass")
        await settled(kit)
        print("recorded", (await used(kit, "acme"))[0], "lost", lane.lost)

asyncio.run(main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a longer one would be shortened through a folder that is not there."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.mark.dear("a process on a disk of its own")
def test_i9_i11_a_full_disk_costs_no_request_and_no_unit(folder: Path, valkey: Server) -> None:
    program = BEGIN.format(tests=str(TESTS)) + FULL.format(port=valkey.port)
    lines = run_on_a_small_disk(folder, program)
    said = [line for line in lines if not line.startswith(("WARNING", "ERROR"))]
    assert said == [
        "{200}",
        "spooled 0 waiting 200 lost 0",
        "on disk",
        "recorded 201 lost 0",
        "{200}",
        "recorded 251 lost 0",
    ]
    (told, *_) = [line for line in lines if "usage cannot be written to" in line]
    assert told.startswith("WARNING usage cannot be written to spools and waits in memory: ")
    assert "No space left on device" in told


EMBEDDED: Final = """
from meterkit.errors import MeterkitError
from meterkit.redis import embedded
from meterkit.redis.embedded import EmbeddedServer

embedded._START_S = 3600.0  # Longer than this program may take: what waited for the server would not end.
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


def test_a_server_that_has_no_room_to_start_is_said_to_have_none(folder: Path) -> None:
    # F-69: "its log says: nothing", as there was no room for a log either; or a traceback.
    told = run_on_a_small_disk(folder, EMBEDDED)
    why = (
        f"the embedded server in {folder}/store cannot run: its disk is full; make room, or name a"
        " directory on another disk"
    )
    assert [why, why, "served"] == told
