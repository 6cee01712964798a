"""What it costs to meter the streams of language models.

The readers alone, what the middleware adds to each chunk of concurrent streams, and whether processes that
race for one budget are given more than there is. What a whole request costs is measured beside the other
variants.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import overshoot
from inprocess import Worker, database, summarize
from peers.streaming import question
from variants import BY_NAME

if TYPE_CHECKING:
    from machine import Cores

READERS = Path(__file__).with_name("usage_readers.py")
BARE, SETTLE, RESERVE = "bare-stream", "meterkit-stream-settle", "meterkit-stream"
FIRST_DB = 52


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How many streams at once, of how many chunks, how often."""

    rounds: int
    chunks: int
    streams: int = 200


FULL = Amount(rounds=7, chunks=100)
QUICK = Amount(rounds=1, chunks=40)


def readers(cores: Cores) -> dict:
    """The readers alone, in a process of their own."""
    with cores.on(cores.client):
        done = subprocess.run([sys.executable, str(READERS)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def chunks(redis_url: str, cores: Cores, loop: str, amount: Amount) -> dict[str, dict]:
    """How long the app waits for ``send`` of each chunk, bare and metered, in interleaved rounds.

    Nobody but the middleware stands between the app and the end of ``send``, which never suspends: what is
    over the bare app's is what the middleware adds to the chunk.
    """
    order = {
        "do": "watch",
        "streams": amount.streams,
        "customers": amount.streams,
        "body": question(chunks=amount.chunks).decode(),
    }
    names = (BARE, SETTLE, RESERVE)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(BY_NAME[name], database(redis_url, FIRST_DB + number), cores, loop)
            )
            for number, name in enumerate(names)
        }
        measured: dict[str, list] = {name: [] for name in names}
        for number in range(-1, amount.rounds):
            for name in names:
                seen = workers[name].order(**order, seed=number + 1)
                if number >= 0:
                    measured[name].append(seen)
    return {name: _condensed(seen, measured[BARE]) for name, seen in measured.items()}


def _condensed(seen: list[dict], bare: list[dict]) -> dict[str, dict]:
    columns = {key: [result[key] for result in seen] for key in seen[0]}
    for key in ("p50_us", "p99_us", "last_p50_us", "last_p99_us"):
        columns[f"added_{key}"] = [result[key] - base[key] for result, base in zip(seen, bare, strict=True)]
    return summarize(columns)


def measure(redis_url: str, cores: Cores, loop: str, amount: Amount) -> dict:
    return {
        "streams": amount.streams,
        "chunks_each": amount.chunks,
        "readers": readers(cores),
        "chunks": chunks(redis_url, cores, loop, amount),
        "races": overshoot.measure(redis_url),
    }
