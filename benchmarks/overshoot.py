"""Many processes race for one budget with streams that reserve: is more given out than there is?

python benchmarks/overshoot.py runs it alone; with arguments it is one of the processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import redis
from driver import Client, Target, running
from machine import Cores, redis_server
from peers.meterkit_app import PLANS
from peers.streaming import PATH, metered, question
from together import Together, begin, say

from meterkit import MeterKit

if TYPE_CHECKING:
    from meterkit import MeterMiddleware

Way = Literal["route", "kit"]
CUSTOMER, METER, PLAN = "cus_budget", "output_tokens", "budget.yaml"
BUDGET = 100_000
PROCESSES, STREAMS, TURNS = 8, 100, 3
RESERVED = 200
CHUNKS = 10
WAYS: tuple[Way, ...] = ("route", "kit")
STORE_TIMEOUT_S = 30.0
FIRST_DB = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a stream comes to, of what it has reserved."""

    title: str
    least: int
    most: int


CASES = (
    Case(title="actual <= reserved", least=0, most=RESERVED),
    Case(title="actual > reserved", least=RESERVED + 1, most=3 * RESERVED),
)


class Racer:
    """One process: streams at a time, each of which reserves, answers and captures."""

    def __init__(self, redis_url: str, seed: int, case: Case) -> None:
        self.redis_url = redis_url
        self.random = random.Random(seed)
        self.case = case
        self.statuses: Counter[str] = Counter()
        self.actual = self.beyond = 0

    def count(self, tokens: int) -> None:
        self.statuses["admitted"] += 1
        self.actual += tokens
        self.beyond += max(0, tokens - RESERVED)

    async def run(self, way: Way) -> dict:
        if way == "route":
            app: MeterMiddleware = metered(PLAN, self.redis_url, store_timeout=STORE_TIMEOUT_S)
            async with running(app) as client:
                await self._race(lambda tokens: self._request(client, tokens))
        else:
            kit = MeterKit(PLANS / PLAN, redis_url=self.redis_url, flush="off", store_timeout=STORE_TIMEOUT_S)
            async with kit:
                await self._race(lambda tokens: self._reserve(kit, tokens))
        return {"statuses": self.statuses, "actual": self.actual, "beyond": self.beyond}

    async def _race(self, stream) -> None:
        async def turns() -> None:
            for _ in range(TURNS):
                await stream(self.random.randint(self.case.least, self.case.most))

        say("ready")
        await begin()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(STREAMS):
                tasks.create_task(turns())

    async def _request(self, client: Client, tokens: int) -> None:
        body = question(chunks=CHUNKS, tokens=tokens, max_tokens=RESERVED)
        status = await client.status(Target(CUSTOMER, PATH, body))
        if status == 200:
            self.count(tokens)
        else:
            self.statuses[str(status)] += 1

    async def _reserve(self, kit: MeterKit, tokens: int) -> None:
        async with kit.reserve(CUSTOMER, {METER: RESERVED}) as reservation:
            if not reservation.decision.allowed:
                self.statuses[str(reservation.decision.reason)] += 1
                return
            for _ in range(CHUNKS):
                await asyncio.sleep(0)
            await reservation.capture({METER: tokens})
            self.count(tokens)


async def child(way: Way, redis_url: str, seed: int, case: Case) -> None:
    logging.disable(logging.WARNING)  # Each refusal would be a line.
    say(await Racer(redis_url, seed, case).run(way))


class Watch:
    """Looks again and again at how much is recorded and held; keeps the most that it saw."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._look()), daemon=True)
        self.most = self.looks = 0
        self.usage: dict = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    async def _look(self) -> None:
        async with MeterKit(
            PLANS / PLAN, redis_url=self._redis_url, flush="off", store_timeout=STORE_TIMEOUT_S
        ) as kit:
            while True:
                over = self._over.is_set()
                self.usage = dict((await kit.usage(CUSTOMER))["meters"][METER])
                self.most = max(self.most, self.usage["used"])
                self.looks += 1
                if over:
                    return
                await asyncio.sleep(0.005)


def race(way: Way, redis_url: str, case: Case) -> dict:
    """One race on an empty database."""
    redis.Redis.from_url(redis_url, socket_timeout=STORE_TIMEOUT_S).flushdb()
    numbers = [str(n) for n in (case.least, case.most)]
    arguments = [[way, redis_url, str(seed), case.title, *numbers] for seed in range(PROCESSES)]
    with Together(__file__, arguments) as racers, Watch(redis_url) as watch:
        racers.begin()
        answers = racers.answers()
    return judged(answers, watch)


def judged(answers: list[dict], watch: Watch) -> dict:
    statuses: Counter[str] = Counter()
    for answer in answers:
        statuses.update(answer["statuses"])
    if not watch.usage:
        raise RuntimeError("nobody could look at the budget while it was raced for")
    recorded = watch.usage["recorded"]
    return {
        "budget": BUDGET,
        "statuses": dict(statuses),
        "recorded": recorded,
        "held_after": watch.usage["held"],
        "uncounted": sum(answer["actual"] for answer in answers) - recorded,
        "over": max(0, recorded - BUDGET),
        "most_used": watch.most,
        "looks": watch.looks,
        "beyond": sum(answer["beyond"] for answer in answers),
    }


def measure(redis_url: str) -> dict[str, dict]:
    """Every case each way, by a name that says both."""
    address = f"{redis_url}/{FIRST_DB}"
    return {f"{way}, {case.title}": race(way, address, case) for way in WAYS for case in CASES}


def main() -> None:
    if len(sys.argv) > 1:
        way, redis_url, seed, title, least, most = sys.argv[1:]
        case = Case(title=title, least=int(least), most=int(most))
        asyncio.run(child(way, redis_url, int(seed), case))
        return
    with redis_server(Cores()) as redis_url:
        print(json.dumps(measure(redis_url), indent=1))


if __name__ == "__main__":
    main()
