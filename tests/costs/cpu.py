"""CPU time of a process with all that it started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

__all__ = ["cpu_seconds"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


def cpu_seconds() -> float:
    """CPU seconds of this process, of the children it has waited for, and of those that still run.

    What a child used moves from the second sum to the first when it is waited for: a difference of two
    readings counts it once. A process that was left by its parent counts no longer.
    """
    times = os.times()
    waited = times.children_user + times.children_system
    return time.process_time() + waited + sum(map(_used, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    """Processes that were started by one, by any thread of it."""
    found: list[int] = []
    try:
        for thread in (_PROC / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:  # It has ended, or there is no /proc here.
        pass
    return found


def _used(pid: int) -> float:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0
    # The name of the program, in brackets, may have blanks in it; fields 14 to 17 are of the process.
    fields = stat.rpartition(")")[2].split()[11:15]
    return sum(map(int, fields)) / _TICKS + sum(map(_used, _children(pid)))
