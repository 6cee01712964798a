"""What the scripts make of a packed field: its numbers, or an error; never a zero in their place."""

# Internals: a pure table of packed fields, in Lua and in Python.

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.counters import pack_field
from meterkit.decisions.customer_state import NO_STATE
from meterkit.decisions.keys import FORMAT
from meterkit.decisions.packed import Head, MeterCounts
from meterkit.redis import scripts
from meterkit.redis.connection import pack
from store.script_wires import fake_wire, server_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from servers.stores import Server
    from store.script_wires import Wire

MOST: Final = 9 * 10**15
BESIDES: Final = pack_field(1, 2, 3, 4, 5)[1:]
WINDOW: Final = (5, 6, 7)
METER: Final = (1, 2, 3, 4, 5, 6, BESIDES)
HEAD: Final = (1, 2, 3, 4, NO_STATE.encode())
RIGHT: Final[Mapping[str, tuple[Any, ...]]] = {"window_of": WINDOW, "meter_of": METER, "head_of": HEAD}


def wrongs(right: tuple[Any, ...]) -> Mapping[str, bytes]:
    """What is not the field."""
    return {
        "a text": b"many",
        "nothing": b"",
        "a number less": pack_field(*right[:-1]),
        "a number more": pack_field(*right, 0),
        "another format": b"\xfc" + pack_field(*right)[1:],
        "no format": pack_field(*right)[1:],
    }


@pytest.fixture(params=["server", "fake"])
def wire(valkey: Server, request: pytest.FixtureRequest) -> Iterator[Wire]:
    if request.param == "fake":
        yield fake_wire()
    else:
        with server_wire(valkey) as execute:
            yield execute


def asked(wire: Wire, lines: str, *arguments: bytes) -> Any:
    """What lines of Lua reply that stand behind the includes of the seal, which read nearly all fields."""
    is_fake = isinstance(wire(pack("EVAL", "return {struct.pack('<d', 1)}", 0)), Exception)
    text = scripts.load("seal", dialect="fake" if is_fake else "server").text
    window = re.search(
        r"^local function window_of.*?^end$", scripts.load("decide").text, re.MULTILINE | re.DOTALL
    )
    assert window is not None
    functions = text[: text.index("local counters_key")]
    return wire(pack("EVAL", f"{functions}\n{window[0]}\n{lines}", 0, *arguments))


@pytest.mark.parametrize("reader", list(RIGHT))
def test_what_is_damaged_is_never_read(wire: Wire, reader: str) -> None:
    right = RIGHT[reader]
    ask = f"return {{{reader}(ARGV[1], 'h')}}"
    assert asked(wire, ask, pack_field(*right)) == list(right)
    for what, wrong in wrongs(right).items():
        assert "DAMAGED field h" in str(asked(wire, ask, wrong)), what


def test_what_need_not_be_fast_looks_at_every_number(wire: Wire) -> None:
    ask = "local found = open_meter(ARGV[1]) return found and found.stamped_ms or 'none'"
    assert asked(wire, ask, pack_field(*METER)) == 4
    for wrong in (
        pack_field(*METER[:-1], 7),
        pack_field(b"x", *METER[1:]),
        pack_field(*METER[:-1], BESIDES + b"\x01"),
        pack_field(*METER[:-1], BESIDES[:-1]),
        pack_field(MOST + 1, *METER[1:]),
        pack_field(-1, *METER[1:]),
    ):
        assert asked(wire, ask, wrong) == b"none"


@pytest.mark.parametrize("number", [0, 128, 65_536, MOST])
def test_numbers_are_exact_whichever_way_they_go(wire: Wire, number: int) -> None:
    packed = pack_field(*(number,) * 6, b"")
    ask = "local m = open_meter(ARGV[1]) m.stamped_ms = m.held return {pack_meter(m)}"
    (found,) = asked(wire, ask, packed)
    expected = pack_field(*(number,) * 6, pack_field(0, 0, 0, number, 0)[1:] if number else b"")
    assert found == expected
    assert MeterCounts.read(found).stamped_ms == number
    (head,) = asked(
        wire,
        "return {cmsgpack.pack(FORM, head_of(ARGV[1]))}".replace("FORM", f"-{FORMAT}"),
        pack_field(*(number,) * 4, "x" * 40),
    )
    assert Head.read(head) == Head(number, number, number, number, "x" * 40)


@pytest.mark.parametrize(
    "packed", [b"\xca\x00", b"\xfd\xcd\x01", b"\xfd\xd9", b"\xfe", b"", pack_field(1, 2)]
)
def test_python_refuses_what_is_damaged(packed: bytes) -> None:
    for reader in (Head.read, MeterCounts.read):
        with pytest.raises(ValueError, match=r"not packed|not a packed|other values"):
            reader(packed)
    assert (Head.read(None), MeterCounts.read(None)) == (Head(), MeterCounts())
