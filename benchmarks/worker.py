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
from dataclasses import replace
from typing import TYPE_CHECKING

from driver import Client, Target, running
from peers.streaming import CHUNKS, HEADERS, PATH, Chat, answer
from variants import BY_NAME

from llm_usage import ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def spread(requests: int, customers: int, seed: int, like: Target) -> list[Target]:
    """``requests`` requests, every customer equally often, in a random order that the seed fixes."""
    targets = [replace(like, customer=f"cus_{i % customers:05d}") for i in range(requests)]
    random.Random(seed).shuffle(targets)
    return targets


def draw_zipf(requests: int, customers: int, seed: int, like: Target) -> list[Target]:
    """``requests`` requests of customers by Zipf's law: the second sends half as many as the first."""
    names = [f"cus_{i:05d}" for i in range(customers)]
    weights = [1 / rank for rank in range(1, customers + 1)]
    picked = random.Random(seed).choices(names, weights, k=requests)
    return [replace(like, customer=customer) for customer in picked]


def walk(requests: int, customers: int, paths: int, like: Target) -> list[Target]:
    """Every customer on every path, in turn; a request with a body has one path only."""
    if like.body:
        return [replace(like, customer=f"cus_{i % customers:05d}") for i in range(requests)]
    return [
        Target(f"cus_{i % customers:05d}", f"/v1/items/{i // customers % paths}") for i in range(requests)
    ]


async def watched(order: dict, client: Client) -> dict:
    """How long each chunk of concurrent streams took to send, in µs, and the last message of each."""
    targets = spread(
        order["streams"], order["customers"], order["seed"], like=Target("", PATH, order["body"].encode())
    )
    Chat.sends_ns, Chat.last_ns = [], []
    try:
        await client.burst(targets, order["streams"])
        sends, last = sorted(Chat.sends_ns), sorted(Chat.last_ns)
    finally:
        Chat.sends_ns = Chat.last_ns = None
    return {
        "chunks": len(sends),
        "p50_us": sends[len(sends) // 2] / 1e3,
        "p99_us": sends[len(sends) * 99 // 100] / 1e3,
        "last_p50_us": last[len(last) // 2] / 1e3,
        "last_p99_us": last[len(last) * 99 // 100] / 1e3,
    }


async def count_instructions(order: dict, client: Client, like: Target) -> dict:
    """Bytecode instructions of this process per request; C is not counted."""
    total = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Callable:
        nonlocal total
        if event == "opcode":
            total += 1
        elif event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace

    targets = spread(order["requests"], order["customers"], 0, like)
    await client.burst(targets, order["concurrency"])
    sys.settrace(trace)
    try:
        await client.burst(targets, order["concurrency"])
    finally:
        sys.settrace(None)
    return {"instructions": total / len(targets)}


def parsed(requests: int, pieces: list[bytes]) -> dict:
    """CPU of reading usage off so many responses alone, as the middleware does it, in µs per response."""
    begun = time.process_time()
    for _ in range(requests):
        reader = ResponseReader.open("openai", status=200, headers=HEADERS)
        for piece in pieces:
            reader.feed(piece)
        reader.close(complete=True)
    return {"parse_us": (time.process_time() - begun) / requests * 1e6}


async def obey(order: dict, client: Client, like: Target) -> dict:
    match order["do"]:
        case "burst":
            targets = spread(order["requests"], order["customers"], order["seed"], like)
            return (await client.burst(targets, order["concurrency"])).summary()
        case "mix":
            targets = draw_zipf(order["requests"], order["customers"], order["seed"], like)
            return (await client.send_paced(targets, order["per_second"])).summary()
        case "count":
            return await count_instructions(order, client, like)
        case "walk":
            targets = walk(order["requests"], order["customers"], order["paths"], like)
            return (await client.burst(targets, 1, after_s=0.1)).summary()
        case "watch":
            return await watched(order, client)
        case "parse":
            return parsed(order["requests"], answer(CHUNKS, 300))
        case unknown:
            raise ValueError(f"unknown order {unknown!r}")


def say(answer: dict) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def serve(variant: str, redis_url: str) -> None:
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    chosen = BY_NAME[variant]
    newcomer = replace(chosen.target, customer="cus_first")
    app = chosen.build(redis_url)
    built = time.perf_counter()
    async with running(app) as client:
        started = time.perf_counter()
        first = await client.get(newcomer)
        second = await client.get(newcomer)
        say(
            {
                "build_ms": (built - begun) * 1e3,
                "start_ms": (started - built) * 1e3,
                "first_ms": first / 1e6,
                "second_ms": second / 1e6,
            }
        )
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            say(await obey(json.loads(line), client, chosen.target))


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
