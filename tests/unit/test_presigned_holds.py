"""What presigned uploads hold of a gauge: until their slot is over, and nothing of a damaged field."""

from __future__ import annotations

import pytest

from drivers.counters import pack_field
from meterkit.decisions.gauges import presigned_at
from meterkit.decisions.periods import HOLD_SLOT_MS

SLOT = 1_000
NOW_MS = SLOT * HOLD_SLOT_MS + HOLD_SLOT_MS // 2


def test_each_upload_holds_until_its_slot_begins() -> None:
    packed = pack_field(SLOT + 1, 10, SLOT + 2, 200, SLOT + 3, 3_000)
    assert [presigned_at(packed, NOW_MS + later * HOLD_SLOT_MS) for later in range(4)] == [
        3_210,
        3_200,
        3_000,
        0,
    ]


def test_an_upload_whose_slot_has_begun_holds_nothing() -> None:
    assert presigned_at(pack_field(SLOT, 10), NOW_MS) == 0
    assert presigned_at(None, NOW_MS) == 0


@pytest.mark.parametrize(
    "packed",
    [pack_field(SLOT + 1), pack_field(SLOT + 1, 10, SLOT + 1), pack_field(SLOT + 1, b"ten"), b"ten"],
)
def test_a_damaged_field_is_no_hold(packed: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        presigned_at(packed, NOW_MS)
