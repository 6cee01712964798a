"""The packed fields of counters, taken apart: one name for each number, as the model keeps them.

``t``, ``b``, ``e``, ``x`` and ``r`` are the head; of a meter ``i``, ``o``, ``j``, ``g``, ``c``, ``p``, ``m``
what is counted, ``h`` and ``H`` what is held in the slot of the last time seen and in the one before, ``z``
its stamp; ``n`` and ``N`` what is in flight in these slots, ``w`` and ``W`` what is held of a credit; ``a``,
``b``, ``d`` the numbers of a rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from meterkit import MeterKit
from meterkit.decisions.keys import FORMAT, meter_field
from meterkit.decisions.packed import CounterHead, MeterCounts, unpack_field
from meterkit.decisions.periods import HOLD_SLOT_MS
from servers.stores import Server

Flat = dict[str, str]

_COUNTED: Final = "iogcpmzj"
_HEAD: Final = "tbexr"


def pack_field(*values: int | str | bytes) -> bytes:
    """A packed field: the inverse of :func:`unpack_field`."""
    return b"".join(_pack(value) for value in (-FORMAT, *values))


def _pack(value: int | str | bytes) -> bytes:
    if not isinstance(value, int):
        text = value.encode() if isinstance(value, str) else value
        return bytes([0xA0 + len(text)] if len(text) < 0x20 else [0xD9, len(text)]) + text
    if value < 0x80:
        return bytes([value % 0x100])  # Also just below zero.
    log = next(log for log in range(4) if value < 1 << (8 << log))
    return bytes([0xCC + log]) + value.to_bytes(1 << log, "big")


def flat_of(fields: Mapping[str, bytes]) -> Flat:
    """The numbers of a customer's counters by name, without those that say nothing."""
    head = CounterHead.read(fields.get("h"))
    flat: dict[str, int | str] = dict(zip(_HEAD, head, strict=True))
    slot = head.seen_ms // HOLD_SLOT_MS
    for name, packed in fields.items():
        token, kind = name[:-1], name[-1]
        if kind == "m":
            counts = MeterCounts.read(packed)
            counted = (
                *(counts.included, counts.overage, counts.granted, counts.credited, counts.pending),
                *(counts.late, counts.stamped_ms, counts.over_cap),
            )
            flat |= {token + letter: count for letter, count in zip(_COUNTED, counted, strict=True)}
            live = _live(slot, counts.slot, counts.held, counts.held_before)
            flat |= zip((f"{token}h", f"{token}H"), live, strict=True)
        elif kind in "nw":
            holds = MeterCounts.read(packed)
            live = _live(slot, holds.slot, holds.held, holds.held_before)
            flat |= zip((f"{token}{kind}", f"{token}{kind.upper()}"), live, strict=True)
        elif kind == "r":
            flat |= zip((f"{token}a", f"{token}b", f"{token}d"), map(int, unpack_field(packed)), strict=True)
        elif name != "h" and kind != "y":  # The order of prices by model.
            raise ValueError(f"no field of counters: {name}")
    return {name: str(value) for name, value in flat.items() if value not in {0, ""}}


def packed_of(flat: Mapping[str, int | str]) -> dict[str, bytes]:
    """The fields of counters: the inverse of :func:`flat_of`."""
    if not flat:
        return {}
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, value in flat.items():
        if len(name) > 1:
            numbers[name[:-1]][name[-1]] = int(value)
    seen = int(flat.get("t", 0))
    slot = seen // HOLD_SLOT_MS
    fields = {"h": pack_field(*(int(flat.get(name, 0)) for name in _HEAD[:-1]), str(flat.get("r", "")))}
    for token, of in numbers.items():
        if set(of) & set("abd"):
            fields[f"{token}r"] = pack_field(*(of.get(kind, 0) for kind in "abd"))
            continue
        for kind in "nw":
            if {kind, kind.upper()} & set(of):
                fields[token + kind] = pack_field(
                    0, 0, 0, slot, of.get(kind, 0), of.get(kind.upper(), 0), b""
                )
        if set(of) - set("nNwW"):
            besides = b"".join(_pack(of.get(kind, 0)) for kind in "gcmzj")
            numbers_ = [*(of.get(kind, 0) for kind in "iop"), slot, of.get("h", 0), of.get("H", 0)]
            fields[f"{token}m"] = pack_field(*numbers_, besides if any(besides) else b"")
    return fields


def _live(now: int, slot: Any, held: Any, before: Any) -> tuple[int, int]:
    """What is held in the slot that is on, and in the one before."""
    if slot == now:
        return held, before
    if slot > now:  # From before the clock went back.
        return held + before, 0
    return 0, held if slot == now - 1 else 0


def put_head(server: Server, key: str, **changed: str | int) -> None:
    """Change numbers of a head that is there, by their letters."""
    client: Any = server.client()
    with client:
        flat = flat_of({"h": client.hget(key, "h")}) | {name: str(value) for name, value in changed.items()}
        client.hset(key, "h", packed_of(flat)["h"])


async def paid_by(kit: MeterKit, customer: str, meter: str) -> tuple[int, int, int, int]:
    """How many units of a meter are included, paid by grants, by credits, and overage."""
    client: Any = (await kit.store.admin()).client
    counters = kit.store.keys.customer(customer).counters
    found = MeterCounts.read(await client.hget(counters, meter_field(meter)))
    return found.included, found.granted, found.credited, found.overage
