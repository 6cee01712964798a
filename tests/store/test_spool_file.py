"""A spool file: what a disk does not take is not added, and what was added is read again."""

# pyright: reportPrivateUsage=false
# Another process is made to come in between, where no call of ours is.

from __future__ import annotations

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.redis.filelock import FileLock
from meterkit.spool.spool_file import DAMAGED, Header, SpoolFile, frame

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

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


def open_files() -> int:
    """How many this process has."""
    return len(list(Path("/dev/fd").iterdir()))


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


def test_what_cannot_be_begun_is_begun_once_there_is_room(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    held = open_files()
    for _ in range(2):  # It is tried each second.
        with room_for(40), pytest.raises(OSError, match="too large"):
            SpoolFile.create(tmp_path, HEADER)
    assert (list(tmp_path.glob("*.spool")), open_files()) == ([], held)
    SpoolFile.create(tmp_path, HEADER).remove()


def test_a_damaged_file_is_kept_under_another_name(file: SpoolFile) -> None:
    file.append(frame(b"one"))
    file.set_aside()
    kept = file.path.with_suffix(DAMAGED)
    assert not file.path.exists()
    assert b"one" in kept.read_bytes()


def test_i11_what_was_removed_is_put_back_once_there_is_room(file: SpoolFile) -> None:
    directory, held = file.path.parent, open_files()
    file.append(frame(b"one"))
    shutil.rmtree(directory)
    with room_for(40), pytest.raises(OSError, match="too large"):
        file.append(frame(b"two"))
    assert (list(directory.glob("*.spool")), open_files()) == ([], held)
    file.append(frame(b"two"))
    assert ([file.path], open_files()) == (list(directory.glob("*.spool")), held)
    file.close()
    found = SpoolFile.claim(file.path)
    assert found is not None
    assert [b"one", b"two"] == found.read(found.begins)[0]
    found.close()


def test_i11_who_waited_for_the_file_that_was_removed_leaves_the_one_in_its_place(
    file: SpoolFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = FileLock._open

    def open_and_wait(lock: FileLock) -> None:
        opened(lock)
        monkeypatch.setattr(FileLock, "_open", opened)
        file.path.unlink()
        file.put_back()

    monkeypatch.setattr(FileLock, "_open", open_and_wait)
    assert SpoolFile.claim(file.path) is None
    assert file.path.exists()
