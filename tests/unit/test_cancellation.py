"""Tasks that stay cancelled although a foreign client swallows a cancellation."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import looptime
import pytest

import meterkit
from meterkit.cancellation import complete, keep_cancellation, start_task

if TYPE_CHECKING:
    from collections.abc import Coroutine

HOUR_S = 3600.0


def run(story: Coroutine[None, None, None]) -> None:
    """Run a story in virtual time."""
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(story)


async def swallow(times: int) -> None:
    """Wait, and swallow so many cancellations."""
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(HOUR_S)


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("times", [0, 1, 5])
def test_a_task_ends_however_often_its_cancellation_is_swallowed(times: int) -> None:
    async def work() -> None:
        await swallow(times)
        await asyncio.sleep(HOUR_S)

    async def story() -> None:
        task, begun = start_task(work(), name="work"), now()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=HOUR_S)
        assert task.cancelled()
        assert now() - begun == 0.5 * times
        assert task.cancelling() == 1

    run(story())


def test_the_end_of_a_time_limit_is_swallowed_and_still_ends_what_it_limits() -> None:
    async def work() -> float:
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await swallow(3)
                await asyncio.sleep(HOUR_S)
        return now()

    async def story() -> None:
        task, begun = start_task(work()), now()
        assert await task - begun == 11.5
        assert task.cancelling() == 0

    run(story())


def test_a_cancellation_that_is_taken_back_is_not_repeated() -> None:
    async def work() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.sleep(HOUR_S)
        await asyncio.sleep(HOUR_S)
        return "done"

    async def story() -> None:
        assert await start_task(work()) == "done"

    run(story())


def test_the_cleanup_of_a_cancelled_task_has_half_a_second() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(HOUR_S)
        finally:
            await asyncio.sleep(0.4)
            done.append("given back")

    async def story() -> None:
        task = start_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=HOUR_S)
        assert task.cancelled()

    run(story())
    assert done == ["given back"]


def test_children_that_are_gathered_end_with_their_task() -> None:
    async def work() -> None:
        children = (swallow(0), swallow(1), swallow(3))
        await asyncio.gather(*map(start_task, children))

    async def story() -> None:
        task = start_task(work())
        await asyncio.sleep(1)
        for one in asyncio.all_tasks() - {asyncio.current_task()}:  # As asyncio.run() does at its end.
            one.cancel()
        await asyncio.sleep(2)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert task.cancelled()

    run(story())


@pytest.mark.parametrize("error", [None, OSError("no connection")])
def test_a_cancellation_that_a_client_swallows_is_raised_after_it(error: OSError | None) -> None:
    async def ask() -> str:
        await swallow(1)
        if error is not None:
            raise error
        return "reply"

    async def story() -> None:
        asking = asyncio.ensure_future(keep_cancellation(ask()))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(story())


def test_a_cancellation_that_is_requested_before_the_client_is_called_is_raised() -> None:
    """As by Ctrl-C while a command computes: the client is the first to wait after it."""

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await keep_cancellation(swallow(1))

    async def story() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(work())

    run(story())


def test_what_a_cancelled_task_asks_in_its_cleanup_is_answered() -> None:
    async def ask() -> str:
        await asyncio.sleep(0.1)
        return "reply"

    async def work() -> str:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(HOUR_S)
        return await keep_cancellation(ask())

    async def story() -> None:
        working = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        working.cancel()
        assert await working == "reply"

    run(story())


def test_a_cleanup_is_completed_whatever_cancels_its_caller() -> None:
    done: list[str] = []

    async def clean_up() -> str:
        await asyncio.sleep(10)
        done.append("closed")
        return "closed"

    async def story() -> None:
        assert await complete(clean_up()) == "closed"
        closing = asyncio.ensure_future(complete(clean_up()))
        for _ in range(3):
            await asyncio.sleep(1)
            closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    run(story())
    assert done == ["closed"] * 2


def test_the_error_of_a_cleanup_is_raised() -> None:
    async def clean_up() -> None:
        raise LookupError("a bug")

    async def story() -> None:
        with pytest.raises(LookupError):
            await complete(clean_up())

    run(story())


def test_every_task_of_meterkit_stays_cancelled() -> None:
    """A task that is made in another way outlives a cancellation that its client swallows."""
    root = Path(meterkit.__file__).parent
    made = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\b(create_task|ensure_future)\(", path.read_text("utf-8"))
    }
    # The first has the tasks themselves, the second a group whose tasks the caller of an import awaits.
    assert made == {"cancellation.py", "subscriptions/service/importing.py"}
