"""What reading usage off a response costs: per event of a stream, per byte, and in memory.

python benchmarks/usage_readers.py prints JSON.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import TYPE_CHECKING

from peers.streaming import event as openai_chunk

from llm_usage import ResponseReader, StreamTap

if TYPE_CHECKING:
    from collections.abc import Callable

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
PIECE_BYTES = 16_384
STREAM_BYTES = 1 << 20
STREAMS_OPEN = 50


ANTHROPIC_CHUNK = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":" and the"}}\n\n'
)
GEMINI_ITEM = json.dumps(
    {
        "candidates": [{"content": {"parts": [{"text": " and the" * 20}], "role": "model"}, "index": 0}],
        "modelVersion": "gemini-3-pro",
        "responseId": "r1",
    },
    indent=2,
).encode()


def best(run: Callable[[], int], rounds: int = 7) -> float:
    """Nanoseconds for each of the units that a run says it did, in the best of the rounds."""
    found = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter_ns()
        units = run()
        found = min(found, (time.perf_counter_ns() - begun) / units)
    return found


def feeding(
    chunk: bytes, *, usage: str = "auto", headers: list = SSE, times: int = 20_000
) -> Callable[[], int]:
    def run() -> int:
        reader = ResponseReader.open(usage, status=200, headers=headers)
        feed = reader.feed
        for _ in range(times):
            feed(chunk)
        reader.close(complete=True)
        return times

    return run


def tapping(chunk: object, times: int = 20_000) -> Callable[[], int]:
    def run() -> int:
        for _ in StreamTap([chunk] * times, report=len):
            pass
        return times

    return run


def in_pieces(body: bytes, size: int = PIECE_BYTES) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def event_costs() -> dict[str, float]:
    """Microseconds for a chunk of one event without usage."""
    plain, null = openai_chunk(), openai_chunk(usage=None)
    padded = openai_chunk(usage=None, obfuscation="fDz3kQ0")
    cases = {
        "OpenAI": feeding(plain, usage="openai"),
        "OpenAI, auto": feeding(plain),
        "OpenAI, `usage: null`": feeding(null, usage="openai"),
        "OpenAI, in CRLF": feeding(plain.replace(b"\n", b"\r\n")),
        "Anthropic": feeding(ANTHROPIC_CHUNK),
        "OpenAI, padded": feeding(padded),
        "no line end": feeding(b"x" * len(plain), times=2_000),
    }
    return {name: best(run) / 1e3 for name, run in cases.items()}


def other_costs() -> dict[str, float]:
    """Microseconds of what is not meant to be as cheap."""
    continuous = openai_chunk(usage={"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12})
    return {
        "OpenAI, usage in every chunk": best(feeding(continuous)) / 1e3,
        "a dict through a tap": best(tapping(json.loads(openai_chunk()[6:]))) / 1e3,
    }


def reading(pieces: list[bytes], *, usage: str, headers: list) -> Callable[[], int]:
    def run() -> int:
        reader = ResponseReader.open(usage, status=200, headers=headers)
        for piece in pieces:
            reader.feed(piece)
        reader.close(complete=True)
        return sum(map(len, pieces))

    return run


def rates() -> dict[str, float]:
    """Megabytes a second, in chunks of 16 KiB."""
    openai, anthropic = openai_chunk() * 10_000, ANTHROPIC_CHUNK * 25_000
    items = b"[" + b",\r\n".join([GEMINI_ITEM] * 1_000) + b"]"
    cases = {
        "OpenAI": (openai, "openai", SSE),
        "Anthropic": (anthropic, "anthropic", SSE),
        "a JSON document": (b'{"data": "' + b"x" * 4_000_000 + b'"}', "auto", JSON),
        "Gemini, JSON array": (items, "gemini", JSON),
    }
    return {
        name: 1e3 / best(reading(in_pieces(body), usage=usage, headers=headers))
        for name, (body, usage, headers) in cases.items()
    }


def memories() -> dict[str, dict[str, float]]:
    """Bytes of one open reader after 1 MiB of its stream, and the most that it had meanwhile."""
    stream = openai_chunk() * (STREAM_BYTES // len(openai_chunk()) + 1)
    cases = {
        "one event to a chunk": (in_pieces(stream, len(openai_chunk())), SSE),
        "chunks of 16 KiB": (in_pieces(stream), SSE),
        "no line end": (in_pieces(b"x" * STREAM_BYTES), SSE),
        "a JSON document": (in_pieces(b'{"data": "' + b"x" * STREAM_BYTES), JSON),
    }
    return {name: memory(pieces, headers) for name, (pieces, headers) in cases.items()}


def memory(pieces: list[bytes], headers: list) -> dict[str, float]:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        readers = [ResponseReader.open("auto", status=200, headers=headers) for _ in range(STREAMS_OPEN)]
        for piece in pieces:
            for reader in readers:
                reader.feed(piece)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"bytes": (now - before) / STREAMS_OPEN, "most_bytes": (most - before) / STREAMS_OPEN}


def measure() -> dict[str, dict]:
    return {"events_us": event_costs(), "others_us": other_costs(), "rates": rates(), "memory": memories()}


if __name__ == "__main__":
    print(json.dumps(measure()))
