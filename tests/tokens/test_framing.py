from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING
from zlib import crc32

import pytest

from meterkit.tokens.framing.eventstream import EventStream
from meterkit.tokens.framing.incremental import EVENT_BYTES_MAX, Work, drain
from meterkit.tokens.framing.json import Document
from meterkit.tokens.framing.sse import Ndjson, Sse, Takers
from meterkit.tokens.layout import may_report
from tokens.recordings import frame

if TYPE_CHECKING:
    from collections.abc import Callable


class Pieces:
    """Reads what is too large to be kept, and keeps it all the same."""

    def __init__(self, found: list[bytes]) -> None:
        self._found = found
        self._read = b""

    def feed(self, data: bytes) -> Work:
        self._read += data
        yield

    def end(self) -> None:
        self._found.append(self._read)


def any_of_them(_: bytes) -> bool:
    return True


def sse_events(*chunks: bytes, wanted: Callable[[bytes], bool] = any_of_them) -> list[bytes]:
    found: list[bytes] = []
    parser = Sse(Takers(found.append, wanted, lambda: Pieces(found)))
    for chunk in chunks:
        drain(parser.feed(chunk))
    drain(parser.close())
    return found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"]),
        (b"data: a\r\n\rdata: b\n\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": comment\n\ndata: a\n: comment\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\rdata: b\r\r", [b"a\nb"]),
        (b"data:a\ndata:  b\n\n", [b"a\n b"]),
        (b"data\ndata: a\n\n", [b"\na"]),
        (b"data: a:b: c\n\n", [b"a:b: c"]),
        (b"database: a\n\n", []),
        (b"\n\n\n\ndata: a\n\n\n\n\n", [b"a"]),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data: a\r", [b"a"]),
        (b"data: \xc3\xa9\n\n", [b"\xc3\xa9"]),
        (b"", []),
    ],
)
def test_events_are_found_whatever_the_line_ends_and_cuts(stream: bytes, expected: list[bytes]) -> None:
    for cut in range(len(stream) + 1):
        assert expected == sse_events(stream[:cut], stream[cut:]), cut
    assert expected == sse_events(*(stream[at : at + 1] for at in range(len(stream))))


def test_only_events_that_may_have_usage_are_passed_on_where_no_others_are_wanted() -> None:
    stream = b'data: {"usage": null}\n\ndata: {"usage": {}}\n\ndata: x\n\ndata: [DONE]\n\n'
    for cut in range(len(stream) + 1):
        assert [b'{"usage": {}}', b"[DONE]"] == sse_events(stream[:cut], stream[cut:], wanted=may_report)


@pytest.mark.parametrize("size", [EVENT_BYTES_MAX, EVENT_BYTES_MAX + 1, 1 << 20])
@pytest.mark.parametrize("step", [1 << 22, 65_521, 4_096, 977])
def test_an_event_beyond_the_bound_is_read_as_it_comes_and_so_is_the_next(size: int, step: int) -> None:
    """F-30."""
    large = b"data: ".ljust(size // 2, b"x") + b"\nevent: noise\n:\ndata:" + b"y" * (size // 2)
    stream = b"data: a\n\n" + large + b"\n\ndata: b\n\n"
    expected = b"x" * (size // 2 - 6) + b"\n" + b"y" * (size // 2)
    found = sse_events(*(stream[at : at + step] for at in range(0, len(stream), step)))
    if len(large) > EVENT_BYTES_MAX:
        found[1] = found[1].replace(b"\n\n\n", b"\n")  # Blanks between two lines say nothing.
    assert [b"a", expected, b"b"] == found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n', [b'{"a":1}', b'{"b":2}', b"[DONE]"]),
        (b'data: {"a":{}\ndata: ,"b":{}}\n\n', [b'{"a":{}\n,"b":{}}']),
        (b"event: x\ndata: {}\nevent: y\ndata: {}\n\n", [b"{}", b"{}"]),
    ],
)
def test_events_that_one_line_end_parts_are_told_apart(stream: bytes, expected: list[bytes]) -> None:
    """F-40: some servers leave the blank line out; no JSON value goes on behind such an end."""
    for cut in range(len(stream) + 1):
        assert expected == sse_events(stream[:cut], stream[cut:]), cut


def test_lines_are_found_whatever_the_cuts() -> None:
    stream = b'{"a":1}\n\n {"b":2}\r\n\n{"c":3}'
    for cut in range(len(stream) + 1):
        found: list[bytes] = []
        parser = Ndjson(Takers(found.append, any_of_them, partial(Pieces, found)))
        drain(parser.feed(stream[:cut]))
        drain(parser.feed(stream[cut:]))
        drain(parser.close())
        assert [b'{"a":1}', b'{"b":2}', b'{"c":3}'] == found, cut


def items(*chunks: bytes) -> list[bytes]:
    found: list[bytes] = []
    parser = Document(Takers(found.append, any_of_them, lambda: Pieces(found)), unseen=False)
    for chunk in chunks:
        drain(parser.feed(chunk))
    return found


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (b"[]", []),
        (b'[{"a":1}]', [b'{"a":1}']),
        (b'[1, "}{][", null, {"a":[{}]} , [{"b":2}], {}]', [b'{"a":[{}]}', b"{}"]),
        (b'[{"a":"}]\\"}\\\\"},{"b":"\\\\\\""}]', [b'{"a":"}]\\"}\\\\"}', b'{"b":"\\\\\\""}']),
        (b'[{"a":1}] [{"b":2}]', [b'{"a":1}']),
        (b'[{"a":1},{"b"', [b'{"a":1}']),
    ],
)
def test_items_of_an_array_are_found_whatever_the_cuts(array: bytes, expected: list[bytes]) -> None:
    for cut in range(len(array) + 1):
        assert expected == items(array[:cut], array[cut:]), cut
    assert expected == items(*(array[at : at + 1] for at in range(len(array))))


def test_an_item_beyond_the_bound_is_read_as_it_comes_and_so_is_the_next() -> None:
    """F-30."""
    large = b'{"a":"' + b"x" * 2_000_000 + b'"}'
    stream = b"[" + large + b',{"b":2}]'
    for step in (1 << 22, 100_000, 4_099):
        assert [large, b'{"b":2}'] == items(*(stream[at : at + step] for at in range(0, len(stream), step)))


def test_what_is_nested_without_end_stops_the_array() -> None:
    assert [b"{}"] == items(b"[{}", *[b"[[[[[[[["] * 1_000, b"{}")


class Frames:
    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []
        self.large: list[bytes] = []
        self.parser = EventStream(
            lambda headers, payload: self.found.append((headers.get(":event-type", ""), payload)),
            lambda _: Pieces(self.large),
        )

    def feed(self, *chunks: bytes) -> list[tuple[str, bytes]]:
        for chunk in chunks:
            drain(self.parser.feed(chunk))
        drain(self.parser.close())
        return self.found


def test_frames_are_found_whatever_the_cuts() -> None:
    stream = frame(b"one", event_type="a") + frame(b"") + frame(b"two", event_type="b", message_type="event")
    for cut in range(len(stream) + 1):
        frames = Frames()
        assert [("a", b"one"), ("", b""), ("b", b"two")] == frames.feed(stream[:cut], stream[cut:]), cut
        assert not frames.parser.corrupt


def test_headers_of_every_type_are_passed_over() -> None:
    values = b"".join(
        b"\x01h" + bytes([kind]) + value
        for kind, value in enumerate(
            (b"", b"", b"1", b"12", b"1234", b"12345678", b"\0\x03abc", b"\0\x01x", b"12345678", b"1" * 16)
        )
    )
    name = b"\x0b:event-type\x07\x00\x01z"
    prelude = struct.pack(">II", 16 + len(values + name) + 1, len(values + name))
    message = prelude + struct.pack(">I", crc32(prelude)) + values + name + b"p"
    assert [("z", b"p")] == Frames().feed(message + struct.pack(">I", crc32(message)))


def test_a_frame_with_a_wrong_checksum_is_left_out_and_the_next_is_read() -> None:
    broken = bytearray(frame(b"one", event_type="a"))
    broken[-6] ^= 1
    frames = Frames()
    assert [("b", b"two")] == frames.feed(bytes(broken), frame(b"two", event_type="b"))
    assert frames.parser.corrupt


def test_after_a_wrong_prelude_nothing_is_read() -> None:
    broken = bytearray(frame(b"one", event_type="a"))
    broken[3] ^= 1
    frames = Frames()
    assert [("a", b"one")] == frames.feed(
        frame(b"one", event_type="a"), bytes(broken), frame(b"two", event_type="b")
    )
    assert frames.parser.corrupt


def test_a_prelude_is_only_believed_with_its_checksum() -> None:
    message = bytearray(frame(b"one", event_type="a"))[:-4]
    message[8] ^= 1
    frames = Frames()
    assert [] == frames.feed(bytes(message) + struct.pack(">I", crc32(message)))
    assert frames.parser.corrupt


@pytest.mark.parametrize("headers", [b"\x05ab", b"\x01h\x0a", b"\x01h\x07\x00\x09x", b"\x01h\x07\x00"])
def test_headers_that_are_none_make_the_frame_corrupt(headers: bytes) -> None:
    prelude = struct.pack(">II", 16 + len(headers), len(headers))
    message = prelude + struct.pack(">I", crc32(prelude)) + headers
    frames = Frames()
    assert [("b", b"two")] == frames.feed(
        message + struct.pack(">I", crc32(message)), frame(b"two", event_type="b")
    )
    assert frames.parser.corrupt


@pytest.mark.parametrize(("total", "headers"), [(15, 0), (0, 0), (20, 5)])
def test_lengths_that_cannot_be_are_corrupt(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    frames = Frames()
    assert [] == frames.feed(prelude + struct.pack(">I", crc32(prelude)) + b"x" * 40)
    assert frames.parser.corrupt


@pytest.mark.parametrize("step", [1 << 22, 70_000, 997])
def test_a_frame_beyond_the_bound_is_read_as_it_comes_and_so_is_the_next(step: int) -> None:
    """F-30."""
    payload = b"x" * 500_000
    stream = frame(payload, event_type="a") + frame(b"two", event_type="b")
    frames = Frames()
    assert [("b", b"two")] == frames.feed(*(stream[at : at + step] for at in range(0, len(stream), step)))
    assert ([payload], False) == (frames.large, frames.parser.corrupt)


@pytest.mark.parametrize("step", [1 << 22, 70_000, 997])
def test_a_large_frame_with_a_wrong_checksum_is_corrupt_and_the_next_is_read(step: int) -> None:
    broken = bytearray(frame(b"x" * 500_000, event_type="a"))
    broken[-6] ^= 1
    stream = bytes(broken) + frame(b"two", event_type="b")
    frames = Frames()
    assert [("b", b"two")] == frames.feed(*(stream[at : at + step] for at in range(0, len(stream), step)))
    assert frames.parser.corrupt
