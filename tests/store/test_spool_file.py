"""A spool file: what a disk does not take is not added, what was added is read; and who sees which file."""

# Internals: what a disk takes half of cannot be timed from outside.

# pyright: reportPrivateUsage=false
# Another process is made to come in between, where no call of ours is.

from __future__ import annotations

import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.decisions.keys import Keys
from meterkit.redis.filelock import FileLock
from meterkit.spool.directory import SpoolSeen, look_at_spools
from meterkit.spool.spool_file import DAMAGED, Header, SpoolFile, frame

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

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


def test_i11_waiting_for_a_removed_spool_leaves_the_new_one(
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


# What lies in the directory of spools.


KEYS = Keys("mk", 4)
STORE = "redis://127.0.0.1:6379/0"
NOW_MS = 1_950_000_000_000
DAY_MS = 86_400_000


def spool_of(
    directory: Path, producer: str, *, store: str = STORE, keys: Keys = KEYS, age_ms: int = 0
) -> SpoolFile:
    header = replace(Header.of(keys, store), producer=producer, made_ms=NOW_MS - age_ms)
    return SpoolFile.create(directory, header)


def seen_in(directory: Path) -> Sequence[SpoolSeen]:
    return look_at_spools(directory, KEYS, store=STORE, now_ms=NOW_MS)


def test_each_is_told_by_who_has_it_whose_it_is_and_how_old(tmp_path: Path) -> None:
    held = spool_of(tmp_path, "held", age_ms=5000)
    for producer, days in (("left", 6), ("old", 7)):
        spool_of(tmp_path, producer, age_ms=days * DAY_MS).close()
    spool_of(tmp_path, "address", store="redis://10.0.0.5:6379/0", age_ms=1).close()
    spool_of(tmp_path, "shards", keys=Keys("mk", 8), age_ms=2).close()
    damaged = spool_of(tmp_path, "damaged")
    damaged.set_aside()
    (tmp_path / "odd.spool").write_bytes(b"no spool")
    (tmp_path / "empty.spool").touch()
    (tmp_path / "notes.txt").write_text("of somebody else")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    states = {one.path.stem.rpartition("-")[2]: one for one in seen_in(tmp_path)}
    assert {name: one.state for name, one in states.items()} == {
        "held": "held",
        "left": "left",
        "old": "refused",
        "address": "foreign",
        "shards": "foreign",
        "damaged": "damaged",
        "odd": "refused",
    }
    assert (states["left"].begun_ms, states["left"].why) == (NOW_MS - 6 * DAY_MS, "")
    assert states["left"].size == states["left"].path.stat().st_size
    assert states["old"].why.startswith("it was begun 7 days ago")
    assert states["odd"].why == "it cannot be read: it does not begin as a spool does"
    assert "10.0.0.5" in states["address"].why
    assert "8 shards" in states["shards"].why
    held.close()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_whoever_looks_keeps_nobody_from_taking_a_spool_over(tmp_path: Path) -> None:
    path = spool_of(tmp_path, "left").path
    for _ in range(50):
        assert [one.state for one in seen_in(tmp_path)] in (["left"], ["held"])
        taken = SpoolFile.claim(path)
        if taken is not None:
            assert [one.state for one in seen_in(tmp_path)] == ["held"]
            taken.close()
