"""Packed fields, as the scripts write them: counters, and the idempotency marks of the app's event ids.

A job may record several meters under one id, so a mark has each meter with its quantity. Another quantity
under the same id is an error of the caller, not a repeat.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from meterkit.decisions.keys import FORMAT, meter_token
from meterkit.decisions.periods import HOLD_SLOT_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NUMBER_BYTES: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_SMALL_END: Final = 0x80
_SHORT_TEXT, _SHORT_TEXT_END = 0xA0, 0xC0
_TEXTS: Final = {0xD9: 1, 0xDA: 2}
_BELOW_ZERO: Final = 0xE0
_HEAD: Final = (int, int, int, int, bytes)
_METER: Final = (*(int,) * 6, bytes)
_EXTRAS: Final = (int,) * 5
UNCOMPARED: Final = -1
"""Placeholder for a quantity that may differ in a repeat: a charge depends on the prices of its day."""

_NO_QUANTITIES: Final[dict[str, int]] = {}


def unpack_field(packed: bytes) -> list[int | bytes]:
    """Unpack a field, without its format.

    Raises:
        ValueError: it holds something else, or has another format.
    """
    values = _unpack(packed)
    if values[:1] != [-FORMAT]:
        raise ValueError(f"not a packed field of format {FORMAT}: {packed!r:.80}")
    return values[1:]


def _unpack(packed: bytes) -> list[int | bytes]:
    values: list[int | bytes] = []
    at = 0
    while at < len(packed):
        kind, at = packed[at], at + 1
        if kind < _SMALL_END or kind >= _BELOW_ZERO:
            values.append(kind if kind < _SMALL_END else kind - 0x100)
            continue
        size = _NUMBER_BYTES.get(kind, kind - _SHORT_TEXT if _SHORT_TEXT <= kind < _SHORT_TEXT_END else -1)
        if kind in _TEXTS and at + _TEXTS[kind] <= len(packed):
            size, at = int.from_bytes(packed[at : at + _TEXTS[kind]], "big"), at + _TEXTS[kind]
        part = packed[at : at + size]
        if size < 0 or len(part) < size:
            raise ValueError(f"not packed: {packed!r:.80}")
        values.append(int.from_bytes(part, "big") if kind in _NUMBER_BYTES else part)
        at += size
    return values


class CounterHead(NamedTuple):
    """Customer-wide values of the counters, in the field ``h``."""

    seen_ms: int = 0
    begins_ms: int = 0
    ends_ms: int = 0
    expires_ms: int = 0
    rev: str = ""

    @classmethod
    def read(cls, packed: bytes | None) -> Self:
        """Read the field; None: there is none.

        Raises:
            ValueError: it is damaged.
        """
        if packed is None:
            return cls()
        *times, rev = _checked(unpack_field(packed), _HEAD)
        return cls._make((*times, rev.decode()))


class MeterCounts(NamedTuple):
    """Counters of a meter in their period."""

    included: int = 0
    overage: int = 0
    pending: int = 0
    slot: int = 0
    held: int = 0
    held_before: int = 0
    granted: int = 0
    credited: int = 0
    late: int = 0
    stamped_ms: int = 0
    over_cap: int = 0

    @classmethod
    def read(cls, packed: bytes | None) -> Self:
        """Read the field; None: there is none.

        Raises:
            ValueError: it is damaged.
        """
        if packed is None:
            return cls()
        *numbers, extras = _checked(unpack_field(packed), _METER)
        # Rarely used fields are one text for the scripts, empty if all of them are 0.
        return cls(*numbers, *(_checked(_unpack(extras), _EXTRAS) if extras else ()))

    @property
    def recorded(self) -> int:
        """All recorded units, whether included, prepaid, billed or beyond the cap."""
        return self.included + self.overage + self.granted + self.credited + self.over_cap

    def held_at(self, now_ms: int) -> int:
        """Quantity of live holds at an instant: those of the current slot and of the one before."""
        passed = now_ms // HOLD_SLOT_MS - self.slot
        return self.held + self.held_before if passed <= 0 else self.held if passed == 1 else 0


def pack_texts(texts: Iterable[str]) -> bytes:
    """Texts of at most 65,535 bytes as MessagePack, as the scripts unpack them."""
    out: list[bytes] = []
    for text in texts:
        data = text.encode()
        size = len(data)
        if size < _SHORT_TEXT_END - _SHORT_TEXT:
            out.append(b"%c%b" % (_SHORT_TEXT + size, data))
        else:
            out.append(b"\xda%b%b" % (size.to_bytes(2, "big"), data))
    return b"".join(out)


def _checked(values: list[int | bytes], kinds: tuple[type, ...]) -> list[Any]:
    if tuple(map(type, values)) != kinds:
        raise ValueError(f"other values than there must be: {values!r:.80}")
    return values


def compact_json(value: object) -> str:
    """JSON without blanks, as the scripts read it."""
    return json.dumps(value, separators=(",", ":"))


def merge_json(first: str, second: str) -> str:
    """Merge two JSON objects with different members; either may be the empty text."""
    return f"{first[:-1]},{second[1:]}" if first and second else first or second


def text_fields(flat: Sequence[bytes]) -> dict[str, str]:
    """Fields of a hash in a reply, names and values by turns, as texts."""
    return {name: value.decode() for name, value in byte_fields(flat).items()}


def byte_fields(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Fields of a hash in a reply, names and values by turns."""
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


class EventMark(NamedTuple):
    """An event id, and the quantities that are given with it.

    Attributes:
        key: the Redis key of its mark.
        event_id: the app's id, empty if it gave none; a provider's job counts by an id of meterkit's own.
        quantities: by meter; empty: the id counts once, with any quantities.
    """

    key: str
    event_id: str = ""
    quantities: Mapping[str, int] = _NO_QUANTITIES

    @property
    def name(self) -> str:
        """The app's id, without the number that ``record_usage`` adds for further models."""
        return self.event_id.partition("\0")[0]

    def terms(self) -> str:
        """Further terms of a settlement, as JSON."""
        given = [
            part for meter, quantity in self.quantities.items() for part in (meter_token(meter), quantity)
        ]
        return compact_json({"event": given})

    def uncounted(self, kept: bytes) -> Self:
        """Mark reduced to the meters that the stored mark lacks."""
        counted = read_mark(kept)
        left = {
            meter: quantity
            for meter, quantity in self.quantities.items()
            if meter_token(meter) not in counted
        }
        return self._replace(quantities=left)

    def refusal(self, customer: str, kept: bytes) -> str:
        """Error message for a quantity that differs from the recorded one."""
        counted = read_mark(kept)
        differing = (
            f"{counted[meter_token(meter)]} of {meter} were recorded under it before,"
            f" now {quantity} are given"
            for meter, quantity in self.quantities.items()
            if counted.get(meter_token(meter), UNCOMPARED) not in {UNCOMPARED, quantity}
            and quantity != UNCOMPARED
        )
        return (
            f"event_id {self.name!r} of customer {customer!r}: {'; '.join(differing)}; nothing of this"
            " call is recorded: give other usage an event_id of its own, and repeat a call with"
            " the same quantities"
        )


def read_mark(kept: bytes) -> dict[str, int]:
    """Quantities that an event id has counted, by the token of their meter."""
    fields = iter(unpack_field(kept))
    return {
        token.decode(): quantity
        for token, quantity in zip(fields, fields, strict=True)
        if isinstance(token, bytes) and isinstance(quantity, int)
    }


def read_gauge_mark(kept: bytes, gauge: str) -> str:
    """Change of a gauge that an event id has made: ``set 9`` or ``adjust -2``."""
    fields = iter(unpack_field(kept))
    changes = dict(zip(fields, fields, strict=True))
    change = changes[meter_token(gauge).encode()]
    return change.decode() if isinstance(change, bytes) else str(change)
