"""Locks on files: one holder or many, whatever process it is."""

# Internals: locks that processes share, without a server.

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meterkit.errors import StoreError
from meterkit.redis.filelock import FileLock

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.lock"


def run(program: str, *args: object) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout.strip()


def test_a_forked_child_has_no_part_in_its_parents_lock(path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from meterkit.redis.filelock import FileLock

path = Path(sys.argv[1])
lock = FileLock(path)
lock.acquire()
child_reads, parent_writes = os.pipe()
parent_reads, child_writes = os.pipe()
child = os.fork()
if child == 0:
    os.close(parent_writes)
    held = lock.held
    lock.close()
    os.write(child_writes, repr((held, FileLock(path).acquire())).encode())
    os.read(child_reads, 1)
    os._exit(0)
print("child held it and could take it:", os.read(parent_reads, 100).decode())
lock.close()
print("free while the child lives:", FileLock(path).acquire())
os.close(parent_writes)
os.waitpid(child, 0)
"""
    assert run(program, path).splitlines() == [
        "child held it and could take it: (False, False)",
        "free while the child lives: True",
    ]


def test_a_file_system_without_locks_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = FileLock(path)
    with pytest.raises(StoreError, match=r"a\.lock cannot be locked: No locks available"):
        lock.acquire()
    assert not lock.held


def test_a_file_of_another_user_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=r"a\.lock belongs to another user"):
        FileLock(path).acquire()
