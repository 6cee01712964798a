"""A spool file on a disk that does not take what is written: nothing is added then."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.store.frames import Header, frame
from meterkit.store.spool_file import SpoolFile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

HEADER = Header(store="redis://here", prefix="mk", shards=4, producer="p", made_ms=1)


@contextmanager
def room_for(size: int) -> Generator[None]:
    """No file of this process grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    tmp_path.chmod(0o700)
    made = SpoolFile.create(tmp_path, HEADER)
    yield made
    made.close()


def test_what_a_disk_took_half_of_is_taken_off_again(file: SpoolFile) -> None:
    file.append(frame(b"one"))
    before = file.end
    with room_for(before + 20), pytest.raises(OSError, match="too large"):
        file.append(frame(bytes(100)))
    assert (file.end, file.path.stat().st_size) == (before, before)
    file.append(frame(b"two"))
    assert file.read(file.begins) == ([b"one", b"two"], file.end)


def test_what_a_disk_does_not_say_it_has_is_not_added(file: SpoolFile) -> None:
    before = file.end
    # This device takes all that is written, and does not say that it keeps it.
    lock: Any = vars(file)["_lock"]
    device = os.open(os.devnull, os.O_RDWR)
    os.dup2(device, lock.fileno())
    os.close(device)
    with pytest.raises(OSError, match="Invalid argument"):
        file.append(frame(b"one"))
    assert file.end == before
