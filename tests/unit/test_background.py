"""Tasks beside an event loop: each begins anew where it ends by an error, ever more slowly, and says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import looptime
import pytest

from meterkit.background import BackgroundTasks
from meterkit.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


async def beside(work: Callable[[], Coroutine[None, None, None]], *, for_s: float) -> Counter[str]:
    """Have a task run for a while; how often it has failed."""
    failures, loop = Counter[str](), asyncio.get_running_loop()
    tasks = BackgroundTasks(failures)
    tasks.keep(loop, "look", work)
    await asyncio.sleep(for_s)
    await tasks.end(loop)
    return failures


def run(story: Coroutine[None, None, Counter[str]]) -> Counter[str]:
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        return runner.run(story)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("the store is away"), "'look' ended by an error and begins anew: the store is away"),
        (LookupError("what is this"), "LookupError: what is this"),
    ],
)
def test_a_task_that_fails_begins_anew_more_and_more_slowly_and_is_told_of_once(
    error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun = list[float]()

    async def fail() -> None:
        begun.append(asyncio.get_running_loop().time())
        raise error

    failures = run(beside(fail, for_s=600))
    assert failures == Counter({"look": len(begun)})
    pauses = [after - before for before, after in pairwise(begun)]
    assert all(2**nth / 2 <= pause <= 2**nth for nth, pause in enumerate(pauses[:6]))
    assert all(30 <= pause <= 60 for pause in pauses[6:])
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert caplog.records[0].levelname == ("WARNING" if isinstance(error, StoreError) else "ERROR")


def test_a_task_that_has_run_for_a_minute_is_told_of_again_and_begins_anew_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = list[float]()

    async def fail_each_minute() -> None:
        begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(61)
        raise StoreError("away again")

    run(beside(fail_each_minute, for_s=300))
    assert len(begun) == 5
    assert all(61 <= after - before <= 62 for before, after in pairwise(begun))
    assert len(caplog.records) == 4


def test_a_task_that_is_done_is_let_be() -> None:
    begun = list[float]()

    async def end() -> None:
        begun.append(asyncio.get_running_loop().time())

    assert not run(beside(end, for_s=300))
    assert len(begun) == 1
