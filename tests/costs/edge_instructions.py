"""Counts the bytecode instructions of our packages in a request: the same on all machines, under any load."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from starlette.types import Message, Scope

import llm_usage
import meterkit
from meterkit import MeterKit, MeterMiddleware

SOURCES: Final = tuple(f"{Path(str(package.__file__)).parent}/" for package in (meterkit, llm_usage))
REQUESTS: Final = 30
_TRIES: Final = 5_000


@contextmanager
def counted() -> Generator[Counter[str]]:
    """Count the instructions of our functions, each as ``module:Class.function``."""
    found: Counter[str] = Counter()
    names: dict[CodeType, str | None] = {}

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        code = frame.f_code
        if code not in names:
            path = code.co_filename
            source = next((one for one in SOURCES if path.startswith(one)), None)
            names[code] = source and f"{path.removeprefix(source)}:{code.co_qualname}"
        name = names[code]
        if name is None:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            del frame, argument
            if event == "opcode":
                found[name] += 1
            return count

        return count

    sys.settrace(begin)
    try:
        yield found
    finally:
        sys.settrace(None)


def uncounted(do: Callable[[], Any]) -> Any:
    """What a function of the measurement returns, which is none of the request's."""
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        return do()
    finally:
        sys.settrace(trace)


async def fewest(
    app: MeterMiddleware,
    kit: MeterKit,
    new_scope: Callable[[], Scope],
    *,
    is_hot: bool = False,
    body: bytes = b"",
) -> Counter[str]:
    """Count the cheapest of several requests until it is settled: replies to others may come together.

    Args:
        app: has the kit's middleware outermost.
        kit: is connected. A request that finds its store away is not counted.
        new_scope: makes the scope of each request.
        is_hot: whether to count only requests that an allotment admits. Their settlement is counted up to
            where it waits for others.
        body: of each request.
    """
    lane = kit.store.lanes[asyncio.get_running_loop()]

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        del message

    def unused() -> int:
        return 0 if lane.allotments is None else lane.allotments.unused

    best: Counter[str] | None = None
    counts = -REQUESTS  # As many first ones are not looked at: they work out what later ones reuse.
    for _ in range(_TRIES):
        scope, before = new_scope(), unused()
        with counted() as found:
            await app(scope, receive, send)
            while not is_hot and uncounted(lambda: lane.unsettled):  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0)
        if lane.connected and not lane.is_open and (not is_hot or unused() == before - 1):
            counts += 1
            if counts > 0 and (best is None or found.total() < best.total()):
                best = found
        if counts == REQUESTS and best is not None:
            return best
        await asyncio.sleep(0)
    raise AssertionError(f"only {counts} of {_TRIES} requests could be counted")
