"""What a request costs the server in instructions: python benchmarks/server_instructions.py [VARIANT ...]

The server runs under callgrind (apt install valgrind), which counts instructions. Other than times, the
counts stay the same on a busy machine, within about 1 %. Each line is a variant, and how many times the
first it costs.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from driver import Target, running
from machine import server_binaries
from variants import BY_NAME

VARIANTS = ("meterkit-settle", "meterkit-spend", "meterkit-subjects")
WARMING, REQUESTS = 20, 200
CALLGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no")


def control(pid: int, *options: str) -> None:
    subprocess.run(["callgrind_control", *options, str(pid)], check=True, capture_output=True)


def counted(folder: Path) -> int:
    """The instructions of the only dump that has any."""
    found = [
        int(total)
        for dump in folder.glob("callgrind.out.*")
        for total in re.findall(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    ]
    return max(found)


async def measure(name: str, path: Path, pid: int) -> int:
    async with running(BY_NAME[name].build(f"unix://{path}")) as client:
        for _ in range(WARMING):
            await client.get(Target("acme"))
        control(pid, "-i", "on")
        for _ in range(REQUESTS):
            await client.get(Target("acme"))
        await asyncio.sleep(1)  # The last request is settled after its response.
        control(pid, "-d", name)
        found = counted(path.parent)
        control(pid, "-i", "off")
    return found


def cost_of(name: str) -> float:
    """Instructions of a request, in thousands."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = folder / "s"
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--hz", "1")
        command = (*CALLGRIND, server_binaries()[0], *options)
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.1)
            return asyncio.run(measure(name, path, server.pid)) / REQUESTS / 1000
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    os.environ["METERKIT_STORE_TIMEOUT"] = "10"  # Under callgrind a server is about fifty times slower.
    first = 0.0
    for name in sys.argv[1:] or VARIANTS:
        cost = cost_of(name)
        first = first or cost
        print(f"{name:30} {cost:8.1f} thousand instructions {cost / first:6.2f}", flush=True)


if __name__ == "__main__":
    main()
