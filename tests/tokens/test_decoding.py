"""Content codings: what comes out of them, how much at most, and what is made of those that stay closed."""

from __future__ import annotations

import sys
import tracemalloc
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING

import pytest

from meterkit.tokens.framing.decoding import DECODED_BYTES_MAX, Decoding, decoding_of
from meterkit.tokens.response import ResponseReader
from tokens.packing import BR, HIDDEN, PACKERS, ZSTD, hide, look_again, pack
from tokens.recordings import JSON_TYPE, RECORDINGS, SSE_TYPE, chat, chat_usage, compact, figures, sse

if TYPE_CHECKING:
    from meterkit.tokens.call_usage import CallUsage

BY_NAME = {recording.name: recording for recording in RECORDINGS}
NAMES = ("openai-chat-stream", "anthropic-stream", "gemini-array", "ollama-chat")


def opened(coding: bytes) -> Decoding:
    decoding = decoding_of(coding)
    assert decoding is not None
    return decoding


def unpack(decoding: Decoding, body: bytes, step: int = 1 << 30) -> list[bytes]:
    return [piece for at in range(0, len(body), step) for piece in decoding.feed(body[at : at + step])]


def read(
    *chunks: bytes,
    usage: str = "openai",
    kind: str = JSON_TYPE,
    coding: bytes = b"",
    complete: bool = True,
    asked: bool = True,
) -> tuple[tuple[CallUsage, ...], int]:
    headers = [(b"content-type", kind.encode()), (b"content-encoding", coding)]
    reader = ResponseReader.open(usage, status=200, headers=headers)
    assert reader is not None
    for chunk in chunks:
        reader.feed(chunk)
    return reader.close(complete=complete, asked=lambda: asked), reader.estimated_output_tokens


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("name", NAMES)
def test_compressed_and_cut_anywhere_it_amounts_to_the_same(
    name: str, coding: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-36."""
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    recording = BY_NAME[name]
    body, header = pack(recording.body, coding)
    for cut in range(0, len(body) + 1, 3):
        calls, _ = read(
            body[:cut], body[cut:], usage=recording.usage, kind=recording.content_type, coding=header
        )
        assert recording.expected == [figures(call) for call in calls], cut


@pytest.mark.parametrize("codings", [*product(("gzip", "br"), ("br", "zstd", "deflate")), ("gzip",) * 3])
def test_several_codings_are_undone_one_after_the_other(codings: tuple[str, ...]) -> None:
    """F-36."""
    recording = BY_NAME["openai-chat-stream"]
    body, header = pack(recording.body, *codings)
    for step in (1, 7, 1 << 20):
        pieces = [body[at : at + step] for at in range(0, len(body), step)]
        calls, _ = read(*pieces, kind=SSE_TYPE, coding=header)
        assert recording.expected == [figures(call) for call in calls]


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("step", [1 << 20, 1_000])
def test_no_more_than_the_bound_comes_out_and_that_in_small_pieces(
    coding: str, fallback: bool, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    bomb, header = pack(b"\0" * (DECODED_BYTES_MAX + 1_000_000), coding)
    decoding = opened(header)
    seen = 0
    tracemalloc.start()
    try:
        for at in range(0, len(bomb), max(step, len(bomb) // 1_000)):
            for piece in decoding.feed(bomb[at : at + max(step, len(bomb) // 1_000)]):
                seen += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoding.too_large
    assert DECODED_BYTES_MAX - (3 << 20) <= seen <= DECODED_BYTES_MAX
    assert peak < 4 << 20


@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 65_700, 66_000, 1_000_000])
def test_all_that_fits_comes_out(size: int, coding: str) -> None:
    body, header = pack(b"a" * size, coding)
    assert b"a" * size == b"".join(unpack(opened(header), body))
    assert b"a" * size == b"".join(unpack(opened(header), body, 1))


def test_several_members_are_one_body() -> None:
    halves = compact(chat({})), compact(chat({"content": "x"}))
    for coding in ("gzip", "zstd"):
        body = b"".join(PACKERS[coding](half) for half in halves)
        for step in (1, 1 << 20):
            assert b"".join(halves) == b"".join(unpack(opened(coding.encode()), body, step))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "deflate, raw"])
def test_what_follows_the_end_is_padding_in_whatever_piece_it_comes(coding: str) -> None:
    header = coding.partition(",")[0].encode()
    for padding in (b"\0", b"\0\0\0\0", b"\x1f", b"\x1f\0", b"\x78\x9c"):
        body = PACKERS[coding](b"abc") + padding
        for step in (1, len(body) - len(padding), len(body)):
            decoding = opened(header)
            assert b"".join(unpack(decoding, body, step)) == b"abc"
            assert not decoding.corrupt


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_damage_is_said(coding: str) -> None:
    (call,), _ = read(b"\x28\xb5\x1f\x8bno such data, whatever it says", coding=coding.encode())
    assert ("missing", ("corrupt",)) == (call.source, call.notes)


@pytest.mark.parametrize("coding", ["gzip", "deflate, raw", "br", "zstd"])
def test_what_is_cut_off_while_it_is_compressed_is_read_as_far_as_it_came(coding: str) -> None:
    """F-36: a client that hangs up in the middle of a compressed stream."""
    events = [sse(chat({"content": f"{n} {n * n} words, "})) for n in range(2_000)]
    body, header = pack(b"".join(events), coding)
    (call,), estimated = read(body[: len(body) * 3 // 4], kind=SSE_TYPE, coding=header, complete=False)
    assert ("missing", ("ended_early",)) == (call.source, call.notes)
    written = sum(len(f"{n} {n * n} words, ") for n in range(2_000)) // 4
    # br is packed here in blocks of many KiB, each of which is all or nothing.
    assert (0 if coding == "br" else written // 3) < estimated <= written


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [(JSON_TYPE, 1, 1), (JSON_TYPE, 4_000, 1_000), (JSON_TYPE, 1 << 20, 4_096), (SSE_TYPE, 4_000, 125)],
)
@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "compress", "gzip, gzip, gzip, gzip"])
def test_a_coding_that_stays_closed_is_estimated_by_its_bytes(
    coding: str, kind: str, size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-36."""
    hide(monkeypatch, *BR, *ZSTD)
    (call,), estimated = read(b"\x8b" * size, kind=kind, coding=coding.encode())
    assert ("missing", ("encoding",), expected) == (call.source, call.notes, estimated)
    # Where anything may come, the request has to tell.
    (call,), estimated = read(b"\x8b" * size, usage="auto", kind=kind, coding=coding.encode())
    assert expected == estimated
    assert () == read(b"\x8b" * size, usage="auto", kind=kind, coding=coding.encode(), asked=False)[0]


def test_packages_without_a_bound_on_what_comes_out_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def process(self, data: bytes) -> bytes:
            return data

    for name in BR:
        monkeypatch.setattr(import_module(name), "Decompressor", Old)
    look_again(monkeypatch)
    assert decoding_of(b"br") is None


def test_usage_at_the_end_of_a_long_compressed_answer_is_found() -> None:
    body = compact({**chat({"content": "x" * 3_000_000}), "usage": chat_usage(3, 4)})
    for coding in ("gzip", "br", "zstd"):
        packed, header = pack(body, coding)
        (call,), _ = read(packed, coding=header)
        assert ("reported", 3, 4) == figures(call)[:3]


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("coding", PACKERS)
def test_streams_that_are_read_in_turns_do_not_mix(
    coding: str, fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fallback:
        hide(monkeypatch, *HIDDEN.get(coding, ()))
    bodies = [b"".join(b"%d %d," % (n, n * factor) for n in range(5_000)) for factor in (3, 7)]
    packed, (header, _) = zip(*(pack(body, coding) for body in bodies), strict=True)
    decodings = [opened(header), opened(header)]
    found = [b"", b""]
    for at in range(0, max(map(len, packed)), 100):
        for which in (0, 1):
            found[which] += b"".join(decodings[which].feed(packed[which][at : at + 100]))
    assert bodies == found


class Absent:
    """Finds no package, and remembers which were looked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del path, target
        if name.partition(".")[0] in {"brotli", "brotlicffi", "compression", "backports", "zstandard"}:
            self.asked.append(name)
            raise ModuleNotFoundError(name)


@pytest.mark.parametrize("coding", [b"br", b"zstd"])
def test_packages_that_are_absent_are_looked_for_once(coding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Absent()
    for name in [*sys.modules]:
        if name.partition(".")[0] in {*BR, "backports", "zstandard"}:
            monkeypatch.delitem(sys.modules, name)
    look_again(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [absent, *sys.meta_path])
    assert decoding_of(coding) is None
    asked = [*absent.asked]
    assert asked
    assert decoding_of(coding) is None
    assert asked == absent.asked
