"""Packed fields of counters as Python reads them."""

from __future__ import annotations

import pytest

from drivers.counters import pack_field
from meterkit.decisions.packed import MeterCounts, unpack_field
from meterkit.decisions.periods import HOLD_SLOT_MS

FORMAT = pack_field()
BELOW_ZERO = [-32, -31, -2, -1]


def test_numbers_and_texts_are_read_as_they_were_packed() -> None:
    numbers = [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53]
    texts = [b"x" * size for size in (0, 1, 31, 32, 255)]
    values = [value for pair in zip(numbers, 3 * texts, strict=False) for value in pair]
    assert unpack_field(pack_field(*values)) == values
    long = b"x" * 300
    assert unpack_field(FORMAT + b"\xda\x01\x2c" + long + b"\x07") == [long, 7]
    assert unpack_field(FORMAT + bytes(number & 0xFF for number in BELOW_ZERO)) == BELOW_ZERO


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x80",
        b"\x9f",
        b"\xc0",
        b"\xc0" + bytes(32),
        b"\xcb" + bytes(8),
        b"\xcc",
        b"\xa1",
        b"\xd9",
        b"\xd9\x01",
        b"\xda\x00",
    ],
)
def test_what_no_script_writes_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="not packed"):
        unpack_field(FORMAT + wrong)


def test_holds_count_in_their_slot_and_in_the_next_one() -> None:
    counts = MeterCounts(slot=5, held=3, held_before=40)
    found = [counts.held_at(slot * HOLD_SLOT_MS + 1) for slot in (4, 5, 6, 7, 8)]
    assert found == [43, 43, 3, 0, 0]


def test_recorded_is_whatever_pays_for_it() -> None:
    assert MeterCounts(included=1, overage=20, granted=300, credited=4000, pending=9, held=9).recorded == 4321
