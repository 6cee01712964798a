"""Whatever the bytes are: a catalog, or a PlansError that can be printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drivers.sampled import few_examples
from meterkit.catalog import loads
from meterkit.errors import PlansError

HERE = Path(__file__).parent
CORPUS = [path.read_bytes() for path in sorted(HERE.glob("*/*.yaml"))]
EVERYTHING = (HERE / "good" / "everything.yaml").read_text()
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
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x00")
@example(b"\xef\xbb\xbf")
@example("schema: 1".encode("utf-16"))
def test_bytes(data: bytes) -> None:
    check(data)


@quietly
@given(st.text(max_size=200))
def test_text(text: str) -> None:
    check(text)


@quietly
@given(st.lists(st.sampled_from(TOKENS), max_size=60).map("".join))
def test_what_looks_like_yaml(text: str) -> None:
    check(text)


@quietly
@given(st.sampled_from(CORPUS), st.data())
def test_files_with_a_piece_cut_out_or_put_in(whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    put = data.draw(st.sampled_from(TOKENS).map(str.encode) | st.binary(max_size=8))
    check(whole[:start] + put + whole[end:])


@quietly
@given(st.data())
def test_the_whole_example_with_one_word_changed(data: st.DataObject) -> None:
    words = EVERYTHING.split(" ")
    at = data.draw(st.integers(0, len(words) - 1))
    words[at] = data.draw(
        st.sampled_from([*words, "null", "{}", "[]", "-1", "*x", "&x", "1e9", "unlimited", "''"])
    )
    check(" ".join(words))


@pytest.mark.parametrize(
    "text",
    [
        'a: "\\UFFFFFFFF"',
        'a: "\\uD800"',
        "%YAML 1." + "9" * 5000 + "\n---\na: 1\n",
        "%YAML " + "9" * 5000 + ".1\n---\na: 1\n",
        "!<%C0%80> a: 1",
        "--- !!%ff x",
        "a: |99\n x",
    ],
)
def test_what_trips_the_parser_itself(text: str) -> None:
    with pytest.raises(PlansError):
        loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 1_000_000,
        b"{a: " * 200_000,
        b"- " * 500_000,
        b"a: &a [" + b"1, " * 5000 + b"]\n" + b"".join(b"b%d: *a\n" % i for i in range(5000)),
        b"a: " + b"9" * 900_000,
        b"a: '" + b" " * 900_000 + b"/hour'",
        b"schema: 1\n" * 20_000,
        b"? " * 10_000,
        b"".join(b"k%d: {}\n" % i for i in range(20_000)),
    ],
    ids=["lists", "maps", "items", "aliases", "digits", "spaces", "duplicates", "keys", "unknown"],
)
def test_large_and_deep(data: bytes) -> None:
    with pytest.raises(PlansError):
        loads(data)
