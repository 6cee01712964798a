"""Findings about the spools on this host: usage that no process sends, or that will find no room."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Final

from meterkit.catalog.amount_texts import span
from meterkit.errors import SettingsError
from meterkit.health.findings import Finding, named, single
from meterkit.redis.local_files import check_directory
from meterkit.store.spool_file import SPOOL_BYTES_MAX, list_spools

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit.assembly import Parts
    from meterkit.store.spool_file import SpoolInfo, SpoolState

HELD_MS: Final = 15 * 60_000
"""How old the spool of a process that runs may be: within a second of the store's return it is on its way."""
ROOM_BYTES: Final = 64 << 20
"""How much room there must be: as much as waits in memory where the disk takes nothing."""

_MIB: Final = 1 << 20
_LARGE: Final = 0.8


async def look_at_spool_directory(parts: Parts) -> tuple[str, list[Finding]]:
    """What lies in the directory, in short, and what is wrong with it."""
    return await asyncio.to_thread(_look, parts)


def _look(parts: Parts) -> tuple[str, list[Finding]]:
    directory, store, now_ms = parts.settings.spool_dir, parts.store, parts.store.now_ms()
    why = _why_unusable(directory)
    try:
        seen = list_spools(directory, store.keys, store=str(store.address), now_ms=now_ms)
    except OSError as error:
        return "", [unusable(directory, why or str(error))]
    found = (
        [unusable(directory, why)] if why else no_room(directory, shutil.disk_usage(_made(directory)).free)
    )
    files = "1 file" if len(seen) == 1 else f"{len(seen):,} files"
    return f"{files} in {directory} of this host", [
        *found,
        *unsent(seen, now_ms),
        *growing(seen),
        *lasting(seen, now_ms),
    ]


def _why_unusable(directory: Path) -> str:
    """Why nothing can be spooled there; empty: it can."""
    made = _made(directory)
    if not made.is_dir():
        return f"{made} is no directory"
    if not os.access(made, os.W_OK | os.X_OK):
        return f"this user may not write in {made}"
    if made == directory:
        try:
            check_directory(directory)
        except SettingsError as error:
            return str(error)
    return ""


def _made(directory: Path) -> Path:
    """The directory, or what is there already of the way to it."""
    return next(folder for folder in (directory, *directory.parents) if folder.exists())


def unusable(directory: Path, why: str) -> Finding:
    """Nothing can be spooled."""
    return Finding(
        check="spool",
        problem=f"usage of an outage cannot be kept in {directory}: {why}; it would wait in memory, and be"
        " lost with the process",
        cure="set METERKIT_SPOOL_DIR to a directory of the app's user alone, on a disk that outlives the"
        " process",
    )


def no_room(directory: Path, free: int) -> list[Finding]:
    """Whether the disk has room, by its free bytes."""
    if free >= ROOM_BYTES:
        return []
    return single(
        check="spool",
        problem=f"the disk of {directory} has {_mib(free)} left: usage of an outage that finds no room is"
        " lost",
        cure="make room, or set METERKIT_SPOOL_DIR to another disk; each process takes up to 1 GiB",
    )


def unsent(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Spools that no process has, by why they lie there."""
    found: list[Finding] = []
    left = _of("left", seen)
    if left:
        whose = "1 spool of a process that is gone lies" if len(left) == 1 else f"{len(left):,} spools lie"
        found += single(
            check="spool",
            problem=f"{whose} in {left[0].path.parent}, {_mib(sum(one.size for one in left))}, begun"
            f" up to {span(now_ms - left[0].begun_ms)} ago: usage in it is not recorded, and not billed,"
            " until it is sent",
            cure="run `meterkit flush --all` on this host with the settings of the app; the next start of"
            " the app sends it, too",
        )
    foreign = _of("foreign", seen)
    if foreign:
        found += single(
            check="spool",
            problem=f"{named([one.path.name for one in foreign])}: {foreign[0].why}; it is sent to no other",
            cure="run `meterkit flush --all` with METERKIT_REDIS_URL, METERKIT_KEY_PREFIX and"
            " METERKIT_SHARDS of that store; if that store is no longer used, remove the file",
        )
    for one in _of("refused", seen):
        problem, _, cure = one.why.partition(". ")
        cure = cure or "see who has written it, or upgrade this process; it is left as it is"
        found.append(Finding(check="spool", problem=f"{one.path} is never sent: {problem}", cure=cure))
    return found + [
        Finding(
            check="spool",
            problem=f"{one.path} has what was damaged in a spool: {_mib(one.size)} that were not sent",
            cure="see to the disk; take from backups or logs what it says of usage, record that by hand, and"
            " remove the file",
        )
        for one in _of("damaged", seen)
    ]


def growing(seen: Sequence[SpoolInfo]) -> list[Finding]:
    """Spools that are near the size at which usage is lost."""
    large = [one for one in _of("held", seen) if one.size > _LARGE * SPOOL_BYTES_MAX]
    if not large:
        return []
    return single(
        check="spool",
        problem=f"{named([one.path.name for one in large])}: {_mib(large[0].size)} of"
        f" {_mib(SPOOL_BYTES_MAX)}; what comes beyond is lost, and counted",
        cure="bring the store back; more processes take more, as each has a spool of its own",
    )


def lasting(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Spools of processes that run, and that do not get rid of them."""
    old = [one for one in _of("held", seen) if now_ms - one.begun_ms > HELD_MS]
    if not old:
        return []
    whose = "a process has a spool" if len(old) == 1 else f"{len(old):,} processes have spools"
    return single(
        check="spool",
        problem=f"{whose} of up to {span(now_ms - old[0].begun_ms)}, {_mib(sum(one.size for one in old))}"
        f" in {old[0].path.parent}: the store is away for it, or does not take what is in it",
        cure="see that these hosts reach the store; the log of the process says why (meterkit.store)",
    )


def _of(state: SpoolState, seen: Sequence[SpoolInfo]) -> list[SpoolInfo]:
    return [one for one in seen if one.state == state]


def _mib(size: int) -> str:
    return f"{size:,} bytes" if size < _MIB else f"{size / _MIB:,.0f} MiB"
