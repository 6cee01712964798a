"""Whatever the bytes are: a catalog, or a PlansError that can be printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.catalog import loads
from meterkit.errors import PlansError

HERE = Path(__file__).parent
CORPUS = [path.read_bytes() for path in sorted(HERE.glob("*/*.yaml"))]
TOKENS = (
    ": ", "\n", "\n  ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "*", "!x ", "|\n", ">\n",
    '"', "'", "#", "? ", "---\n", "...\n", "%YAML 1.1\n", "<<", "null", "~", "\t", "schema", "1", "meters",
    "plans", "free", "rate", "requests", "unit", "match", "routes", "extends", "5/second",
    "unlimited", "included", "price", "é", "\x85",
)  # fmt: skip
quietly = few_examples(30)


def check(data: bytes | str) -> None:
    try:
        loads(data)
    except PlansError as error:
        refused = error
    else:
        return
    places = [(problem.line, problem.column) for problem in refused.problems]
    assert str(refused).encode()
    assert places
    assert sorted(places) == places


@quietly
@given(st.sampled_from(CORPUS), st.data())
def test_files_with_a_piece_cut_out_or_put_in(whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    put = data.draw(st.sampled_from(TOKENS).map(str.encode) | st.binary(max_size=8))
    check(whole[:start] + put + whole[end:])


@pytest.mark.parametrize(
    "text", ['a: "\\UFFFFFFFF"', "%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "!<%C0%80> a: 1", "a: |99\n x"]
)
def test_what_trips_the_parser_itself(text: str) -> None:
    with pytest.raises(PlansError):
        loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b"{a: " * 200_000,
        b"a: &a [" + b"1, " * 5000 + b"]\n" + b"".join(b"b%d: *a\n" % i for i in range(5000)),
        b"a: " + b"9" * 900_000,
        b"schema: 1\n" * 20_000,
        b"".join(b"k%d: {}\n" % i for i in range(20_000)),
    ],
    ids=["lists", "maps", "aliases", "digits", "duplicates", "unknown"],
)
def test_large_and_deep(data: bytes) -> None:
    with pytest.raises(PlansError):
        loads(data)
