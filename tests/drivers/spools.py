"""Spools as processes leave them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meterkit.spool.spool_file import Header, SpoolFile, frame
from meterkit.store.hold import Used
from meterkit.store.replay import write
from meterkit.store.settlement import Settlement

if TYPE_CHECKING:
    from pathlib import Path

    from meterkit import MeterKit


def spool_with(kit: MeterKit, directory: Path, meter: str, quantity: int, *, days: float = 0) -> SpoolFile:
    """A spool with what acme has used, begun so many days ago; it is held until it is closed."""
    store = kit.store
    made_ms = store.now_ms() - int(days * 86_400_000)
    header = replace(Header.of(store.keys, str(store.address)), producer=f"of{days:g}days", made_ms=made_ms)
    file = SpoolFile.create(directory, header)
    settlement = Settlement(store.cache.get("acme"), used=Used(recorded={meter: quantity}))
    file.append(frame(write(settlement, 1, made_ms, None)))
    return file
