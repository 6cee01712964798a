"""What reading usage off a response costs: per event of a stream, and per byte.

python benchmarks/usage_readers.py
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from meterkit.asgi.usage import ResponseReader, StreamTap

if TYPE_CHECKING:
    from collections.abc import Callable

SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]
EVENT_US_MAX = 3.0
CHUNK_MBS_MIN = 300.0


def openai_chunk(**extra: object) -> bytes:
    body = {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion.chunk",
        "created": 1741569952,
        "model": "gpt-5.6-2026-08-01",
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
        "choices": [{"index": 0, "delta": {"content": " and the"}, "logprobs": None, "finish_reason": None}],
        **extra,
    }
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


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
    chunk: bytes, *, usage: str = "auto", headers: list = SSE, estimate: bool = False, times: int = 20_000
) -> Callable[[], int]:
    def run() -> int:
        reader = ResponseReader.open(usage, status=200, headers=headers, estimate=estimate)
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


def main() -> int:
    plain = openai_chunk()
    cases = {
        "OpenAI, auto": feeding(plain),
        "OpenAI, declared": feeding(plain, usage="openai"),
        'OpenAI, `"usage": null`, auto': feeding(openai_chunk(usage=None)),
        "Anthropic, auto": feeding(ANTHROPIC_CHUNK),
        "OpenAI, auto, in CRLF": feeding(plain.replace(b"\n", b"\r\n")),
    }
    worst = 0.0
    print("an event without usage, one to a chunk:")
    for name, run in cases.items():
        taken = best(run) / 1e3
        worst = max(worst, taken)
        print(f"  {name:42} {taken:6.2f} us")
    print("for comparison:")
    print(f"  {'OpenAI, with text measured':42} {best(feeding(plain, estimate=True)) / 1e3:6.2f} us")
    print(f"  {'a dict through a tap':42} {best(tapping(json.loads(plain[6:]))) / 1e3:6.2f} us")
    continuous = openai_chunk(usage={"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12})
    print(f"  {'OpenAI, usage in every chunk':42} {best(feeding(continuous)) / 1e3:6.2f} us")

    print("chunks of 16 KiB:")
    stream = plain * 2_000
    slowest = float("inf")
    for name, body, headers in (
        ("OpenAI, auto", stream, SSE),
        ("Anthropic, auto", ANTHROPIC_CHUNK * 5_000, SSE),
        ("a JSON document", b'{"data": "' + b"x" * 400_000 + b'"}', JSON),
    ):
        pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]

        def run(pieces: list = pieces, headers: list = headers) -> int:
            for _ in range(10):
                reader = ResponseReader.open("auto", status=200, headers=headers)
                for piece in pieces:
                    reader.feed(piece)
                reader.close(complete=True)
            return 10 * sum(map(len, pieces))

        rate = 1e3 / best(run)
        slowest = min(slowest, rate)
        print(f"  {name:42} {rate:6.0f} MB/s")
    items = b"[" + b",\r\n".join([GEMINI_ITEM] * 1_000) + b"]"
    pieces = [items[at : at + 16_384] for at in range(0, len(items), 16_384)]

    def array() -> int:
        reader = ResponseReader.open("gemini", status=200, headers=JSON)
        for piece in pieces:
            reader.feed(piece)
        reader.close(complete=True)
        return len(items)

    print(f"  {'Gemini, JSON array (no target)':42} {1e3 / best(array):6.0f} MB/s")
    print(f"worst event {worst:.2f} us (allowed: {EVENT_US_MAX})")
    print(f"slowest chunks {slowest:.0f} MB/s (required: {CHUNK_MBS_MIN:.0f})")
    return 0 if worst <= EVENT_US_MAX and slowest >= CHUNK_MBS_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
