"""The process that holds one variant: takes orders as JSON lines on stdin, answers on stdout.

One process per variant keeps the modules, the heap and the garbage collector of one from weighing on
another, while the rounds of all are interleaved.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
import warnings

from driver import Client, Target, running
from variants import BY_NAME


def spread(requests: int, customers: int, seed: int) -> list[Target]:
    """``requests`` requests, every customer equally often, in a random order that the seed fixes."""
    targets = [Target(f"cus_{i % customers:05d}") for i in range(requests)]
    random.Random(seed).shuffle(targets)
    return targets


def walk(requests: int, customers: int, paths: int) -> list[Target]:
    """Every customer on every path, in turn."""
    return [
        Target(f"cus_{i % customers:05d}", f"/v1/items/{i // customers % paths}") for i in range(requests)
    ]


async def obey(order: dict, client: Client) -> dict:
    match order["do"]:
        case "burst":
            targets = spread(order["requests"], order["customers"], order["seed"])
            return (await client.burst(targets, order["concurrency"])).summary()
        case "walk":
            targets = walk(order["requests"], order["customers"], order["paths"])
            return (await client.burst(targets, 1, after_s=0.1)).summary()
        case unknown:
            raise ValueError(f"unknown order {unknown!r}")


def say(answer: dict) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def serve(variant: str, redis_url: str) -> None:
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    app = BY_NAME[variant].build(redis_url)
    built = time.perf_counter()
    async with running(app) as client:
        started = time.perf_counter()
        first = await client.get(Target("cus_first"))
        second = await client.get(Target("cus_first"))
        say(
            {
                "build_ms": (built - begun) * 1e3,
                "start_ms": (started - built) * 1e3,
                "first_ms": first / 1e6,
                "second_ms": second / 1e6,
            }
        )
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            say(await obey(json.loads(line), client))


def main() -> None:
    variant, redis_url, core, loop = sys.argv[1:]
    if core != "any":
        os.sched_setaffinity(0, {int(core)})
    warnings.simplefilter("ignore")
    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 - not installed by default

        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(variant, redis_url))
    except Exception as error:  # Whatever a variant raises is its line in the report.
        say({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
