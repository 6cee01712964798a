"""Three processes with allotments share one limit: how many units are left when the first request is refused?

python benchmarks/shared_limit.py runs it alone; with arguments it is one of the processes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING

import redis
from driver import Client, Target, running
from machine import Cores, redis_server
from peers.meterkit_app import metered
from tables import show
from together import Together, begin, say

if TYPE_CHECKING:
    from tables import Table

PLAN, CUSTOMER = "shared.yaml", "cus_shared"
LIMIT, WINDOW_S = 10_000, 60
PROCESSES = 3
LOADS = {
    "twice the limit": (2, 0.01),
    "ten times the limit": (10, 0.01),
    "ten times the limit, in bursts of 200 ms": (10, 0.2),
}
"""How many times the limit arrives in one window at all processes, and the seconds between arrivals."""
QUICK = "ten times the limit"
QUIET_S = 1.0
"""A process stops when all its requests were refused for so long: longer than an allotment lasts."""
STARTS_S = 3.0
"""Of the window: before that the servers' clock may still be in the window before."""
TRIES = 3
STORE_TIMEOUT_S = 30.0
FIRST_DB = 50


class Sender:
    """One process: requests of one customer at a steady rate, until all are refused."""

    def __init__(self, per_second: float, tick_s: float) -> None:
        self.per_second, self.tick_s = per_second, tick_s
        self.admitted: list[int] = []
        self.refused: list[int] = []

    async def run(self, client: Client) -> None:
        """Send requests, each tick those that are due since the start."""
        begun = last = time.monotonic()
        admitted = sent = 0
        async with asyncio.TaskGroup() as tasks:
            while not self.refused or time.monotonic() - last < QUIET_S:
                due = int((time.monotonic() - begun) * self.per_second)
                for _ in range(due - sent):
                    tasks.create_task(self._request(client))
                sent = due
                await asyncio.sleep(self.tick_s)
                if len(self.admitted) > admitted:
                    admitted, last = len(self.admitted), time.monotonic()

    async def _request(self, client: Client) -> None:
        status = await client.status(Target(CUSTOMER))
        if status not in (200, 429):
            raise RuntimeError(f"a request was answered with {status}, not 200 or 429")
        (self.admitted if status == 200 else self.refused).append(time.monotonic_ns())


async def child(redis_url: str, per_second: float, tick_s: float) -> None:
    logging.disable(logging.WARNING)  # Each refusal would be a line.
    sender = Sender(per_second, tick_s)
    async with running(metered(PLAN, redis_url, store_timeout=STORE_TIMEOUT_S)) as client:
        say("ready")
        await begin()
        await sender.run(client)
    say({"admitted": sender.admitted, "refused": sender.refused})


def await_window(seconds: float) -> None:
    """Wait until one window has so many seconds left, and has begun for sure."""
    at = time.time() % WINDOW_S
    if at + seconds > WINDOW_S:
        time.sleep(WINDOW_S - at)
        at = 0.0
    time.sleep(max(0.0, STARTS_S - at))


def race(redis_url: str, times: int, tick_s: float) -> dict[str, int]:
    """One race within one window; one that a busy machine has made too long is repeated."""
    for _ in range(TRIES):
        answers, is_within = raced(redis_url, times, tick_s)
        if is_within:
            return judged(answers)
    raise RuntimeError(f"{TRIES} races were longer than a window of {WINDOW_S} s: the machine is too busy")


def raced(redis_url: str, times: int, tick_s: float) -> tuple[list[dict[str, list[int]]], bool]:
    """One race on an empty database; whether it ended in the window that it began in."""
    redis.Redis.from_url(redis_url, socket_timeout=STORE_TIMEOUT_S).flushdb()
    per_second = times * LIMIT / WINDOW_S / PROCESSES
    with Together(__file__, PROCESSES * [[redis_url, str(per_second), str(tick_s)]]) as senders:
        await_window(WINDOW_S / times + 5 * QUIET_S)
        window = time.time() // WINDOW_S
        senders.begin()
        answers = senders.answers()
        return answers, time.time() // WINDOW_S == window


def judged(answers: list[dict[str, list[int]]]) -> dict[str, int]:
    """Count by the times of all answers, of one clock.

    Returns:
        ``left``: units that no request had yet when the first was refused. ``early``: requests that were
        refused before the last unit was used. ``over``: admitted beyond the limit.
    """
    admitted = sorted(at for answer in answers for at in answer["admitted"])
    refused = sorted(at for answer in answers for at in answer["refused"])
    full = admitted[LIMIT - 1] if len(admitted) >= LIMIT else refused[-1] + 1
    return {
        "admitted": len(admitted),
        "refused": len(refused),
        "left": LIMIT - min(LIMIT, sum(at < refused[0] for at in admitted)),
        "early": sum(at < full for at in refused),
        "over": max(0, len(admitted) - LIMIT),
    }


def measure(redis_url: str, *, is_quick: bool = False) -> dict[str, dict[str, int]]:
    """Each load, by its name; only one where it is quick."""
    address = f"{redis_url}/{FIRST_DB}"
    return {name: race(address, *load) for name, load in LOADS.items() if name == QUICK or not is_quick}


def table(result: dict) -> Table:
    """The rows of the report."""
    head = (
        f"{PROCESSES} processes, one limit of {LIMIT:,} a minute; requests arrive at",
        "admitted",
        "over the limit",
        "refused",
        "left at the first refusal",
        "of the limit, %",
        "refused before the last unit was used",
    )
    rows = [
        (
            name,
            f"{seen['admitted']:,}",
            f"{seen['over']:,}",
            f"{seen['refused']:,}",
            f"{seen['left']:,}",
            f"{100 * seen['left'] / LIMIT:.2f}",
            f"{seen['early']:,}",
        )
        for name, seen in result.get("shared_limit", {}).items()
    ]
    return "One limit, three processes with allotments", head, rows


def main() -> None:
    if len(sys.argv) > 1:
        redis_url, *numbers = sys.argv[1:]
        asyncio.run(child(redis_url, *map(float, numbers)))
        return
    with redis_server(Cores()) as redis_url:
        show(table({"shared_limit": measure(redis_url)}))


if __name__ == "__main__":
    main()
