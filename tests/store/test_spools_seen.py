"""What lies in the directory of spools: told apart by who has it, whose it is and how old, and left."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meterkit.decisions.keys import Keys
from meterkit.spool.directory import SpoolSeen, look_at_spools
from meterkit.spool.spool_file import Header, SpoolFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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


def test_the_oldest_comes_first_and_where_there_is_no_directory_there_is_nothing(tmp_path: Path) -> None:
    for producer, age_ms in (("b", 1000), ("a", 3000), ("c", 2000)):
        spool_of(tmp_path, producer, age_ms=age_ms).close()
    assert [one.path.stem[-1] for one in seen_in(tmp_path)] == ["a", "c", "b"]
    assert seen_in(tmp_path / "none") == []


def test_whoever_looks_keeps_nobody_from_taking_a_spool_over(tmp_path: Path) -> None:
    path = spool_of(tmp_path, "left").path
    for _ in range(50):
        assert [one.state for one in seen_in(tmp_path)] in (["left"], ["held"])
        taken = SpoolFile.claim(path)
        if taken is not None:
            assert [one.state for one in seen_in(tmp_path)] == ["held"]
            taken.close()
