"""Checks of the spools on this host: usage that no process sends, and free disk space."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Final

from meterkit.catalog.value_parsers import span
from meterkit.insights.health_report import Finding, join_names, one_finding
from meterkit.store.settlement_spool import SPOOL_BYTES_MAX
from meterkit.store.spool_file import list_spools, nearest_existing, reason_unusable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meterkit.assembly import Parts
    from meterkit.store.spool_file import SpoolInfo, SpoolState

HELD_MS: Final = 15 * 60_000
"""A running process sends its spool within a second of the store's return."""
ROOM_BYTES: Final = 64 << 20
"""Free disk space that must remain: as much as a process holds in memory without a disk."""

_MIB: Final = 1 << 20
_LARGE: Final = 0.8


async def check_spool_directory(parts: Parts) -> tuple[str, list[Finding]]:
    """Inspect the spool directory of this host."""
    return await asyncio.to_thread(_inspect_spools, parts)


def _inspect_spools(parts: Parts) -> tuple[str, list[Finding]]:
    directory, store, now_ms = parts.settings.spool_dir, parts.store, parts.store.now_ms()
    why = reason_unusable(directory)
    try:
        seen = list_spools(directory, store.keys, store=str(store.address), now_ms=now_ms)
    except OSError as error:
        return "", [report_unusable_directory(directory, why or str(error))]
    found = (
        [report_unusable_directory(directory, why)]
        if why
        else find_full_disk(directory, shutil.disk_usage(nearest_existing(directory)).free)
    )
    files = "1 file" if len(seen) == 1 else f"{len(seen):,} files"
    return f"{files} in {directory} of this host", [
        *found,
        *find_unsent_spools(seen, now_ms),
        *find_growing_spools(seen),
        *find_lasting_spools(seen, now_ms),
    ]


def report_unusable_directory(directory: Path, why: str) -> Finding:
    """Report a directory in which spools cannot be written."""
    return Finding(
        check="spool",
        problem=f"usage of an outage cannot be spooled to {directory}: {why}; it would stay in memory and be"
        " lost with the process",
        cure="set METERKIT_SPOOL_DIR to a directory of the app's user alone, on a persistent disk",
    )


def find_full_disk(directory: Path, free: int) -> list[Finding]:
    """Report a disk that is nearly full."""
    if free >= ROOM_BYTES:
        return []
    return one_finding(
        check="spool",
        problem=f"the disk of {directory} has {_mib(free)} left: usage of an outage beyond that is lost",
        cure="free space, or set METERKIT_SPOOL_DIR to another disk; each process takes up to 1 GiB",
    )


def find_unsent_spools(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Report spools that no process sends, by the reason."""
    found: list[Finding] = []
    left = _in_state("left", seen)
    if left:
        count = (
            "1 spool of a process that ended is"
            if len(left) == 1
            else f"{len(left):,} spools of ended processes are"
        )
        found += one_finding(
            check="spool",
            problem=f"{count} in {left[0].path.parent}, {_mib(sum(one.size for one in left))}, begun"
            f" up to {span(now_ms - left[0].begun_ms)} ago: usage in it is not recorded, and not billed,"
            " until it is sent",
            cure="run `meterkit flush --all` on this host with the settings of the app; the next start of"
            " the app sends it, too",
        )
    foreign = _in_state("foreign", seen)
    for why in dict.fromkeys(one.why for one in foreign):
        names = [one.path.name for one in foreign if one.why == why]
        found += one_finding(
            check="spool",
            problem=f"{join_names(names)} in {foreign[0].path.parent}: {why}; it is sent to no other store",
            cure="run `meterkit flush --all` with METERKIT_REDIS_URL, METERKIT_KEY_PREFIX and"
            " METERKIT_SHARDS of that store; if it has moved, let its old address lead to the new one for"
            " that command (/etc/hosts); remove the file only if that store is given up",
        )
    for one in _in_state("refused", seen):
        problem, _, cure = one.why.partition(". ")
        cure = cure or "find out which program wrote it, or upgrade this process; the file stays unchanged"
        found.append(Finding(check="spool", problem=f"{one.path} is never sent: {problem}", cure=cure))
    return found + [
        Finding(
            check="spool",
            problem=f"{one.path} has the damaged part of a spool: {_mib(one.size)} that were not sent",
            cure="check the disk; find the lost usage in backups or logs, record it by hand, and remove"
            " the file",
        )
        for one in _in_state("damaged", seen)
    ]


def find_growing_spools(seen: Sequence[SpoolInfo]) -> list[Finding]:
    """Report spools near the size at which usage is lost."""
    large = [one for one in _in_state("held", seen) if one.size > _LARGE * SPOOL_BYTES_MAX]
    if not large:
        return []
    return one_finding(
        check="spool",
        problem=f"{join_names([one.path.name for one in large])}: {_mib(large[0].size)} of"
        f" {_mib(SPOOL_BYTES_MAX)}; usage beyond that is lost, and counted as lost",
        cure="restore the store; more processes can hold more, because each has its own spool",
    )


def find_lasting_spools(seen: Sequence[SpoolInfo], now_ms: int) -> list[Finding]:
    """Report running processes that cannot send their spools."""
    old = [one for one in _in_state("held", seen) if now_ms - one.begun_ms > HELD_MS]
    if not old:
        return []
    whose = "a process has a spool" if len(old) == 1 else f"{len(old):,} processes have spools"
    return one_finding(
        check="spool",
        problem=f"{whose} of up to {span(now_ms - old[0].begun_ms)}, {_mib(sum(one.size for one in old))}"
        f" in {old[0].path.parent}: they cannot reach the store, or the store refuses the entries",
        cure="check that these hosts reach the store; the log of the process says why (meterkit.store)",
    )


def _in_state(state: SpoolState, seen: Sequence[SpoolInfo]) -> list[SpoolInfo]:
    return [one for one in seen if one.state == state]


def _mib(size: int) -> str:
    return f"{size:,} bytes" if size < _MIB else f"{size / _MIB:,.0f} MiB"
