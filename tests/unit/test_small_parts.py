"""Background tasks, cancellation, logs and calls of models: what a seam shows only after minutes."""

# Internals: what a seam shows only after minutes, or by chance.

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import looptime
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import meterkit
from drivers.delivery import CATALOG
from drivers.llm_apps import PROMPT, metered, stream_of, tokens
from llm_payloads.recordings import chat, chat_usage
from meterkit import log_throttle
from meterkit.asgi import logs
from meterkit.asgi.context import exchange
from meterkit.asgi.logs import TroubleLog
from meterkit.cancellation import keep_cancellation, start_task
from meterkit.catalog.value_parsers import money
from meterkit.errors import StoreError
from meterkit.log_throttle import Throttle
from meterkit.serving import BackgroundTasks

pytestmark = pytest.mark.anyio

# Tasks beside an event loop: each begins anew where it ends by an error, ever more slowly, and says so.


async def beside(work: Callable[[], Coroutine[None, None, None]], *, for_s: float) -> Counter[str]:
    """Have a task run for a while; how often it has failed."""
    failures, loop = Counter[str](), asyncio.get_running_loop()
    tasks = BackgroundTasks(failures)
    tasks.ensure_running(loop, "look", work)
    await asyncio.sleep(for_s)
    await tasks.end(loop)
    return failures


def run(story: Coroutine[None, None, Any]) -> Any:
    """Run a story in virtual time."""
    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        return runner.run(story)


def test_a_store_that_is_down_is_logged_once_for_all_tasks(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise StoreError("the store is away")

    async def story() -> None:
        loop, tasks = asyncio.get_running_loop(), BackgroundTasks(Counter())
        for name in ("webhooks", "own prices", "closes"):
            tasks.ensure_running(loop, name, fail)
        await asyncio.sleep(60)
        await tasks.end(loop)

    run(story())
    assert caplog.messages == [
        "the background task 'webhooks' ended by an error and begins anew: the store is away"
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("the store is away"), "'look' ended by an error and begins anew: the store is away"),
        (LookupError("what is this"), "LookupError: what is this"),
    ],
)
def test_a_failing_task_restarts_ever_more_slowly_logged_once(
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


def test_a_task_that_ran_a_minute_is_logged_and_restarts_at_once(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_task_without_threads_ends_with_its_process(caplog: pytest.LogCaptureFixture) -> None:
    """Of a process that ends Python takes the threads first: a forked worker logged an error then."""

    async def look() -> None:
        await asyncio.to_thread(now)

    async def story() -> Counter[str]:
        executor = ThreadPoolExecutor()
        executor.shutdown()
        asyncio.get_running_loop().set_default_executor(executor)
        return await beside(look, for_s=60)

    assert (run(story()), caplog.messages) == (Counter(), [])


# Tasks that stay cancelled although a foreign client swallows a cancellation.


HOUR_S = 3600.0


async def swallow(times: int) -> None:
    """Wait, and swallow so many cancellations."""
    for _ in range(times):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(HOUR_S)


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("times", [0, 5])
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


@pytest.mark.parametrize("error", [None, OSError("no connection")])
def test_a_cancellation_swallowed_by_a_client_is_raised_later(error: OSError | None) -> None:
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


def test_a_cancellation_before_the_client_is_called_is_raised() -> None:
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


def test_every_task_of_meterkit_stays_cancelled() -> None:
    """A task that is made in another way outlives a cancellation that its client swallows."""
    root = Path(meterkit.__file__).parent
    made = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"\b(create_task|ensure_future)\(", path.read_text("utf-8"))
    }
    # The first has the tasks themselves, the second a group whose tasks their caller awaits.
    assert made == {"cancellation.py", "store/concurrent_calls.py"}


# A line of the log is due at most once in a span.


def test_a_line_is_due_once_in_a_span_and_others_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0
    monkeypatch.setattr(log_throttle, "monotonic", lambda: now_s)
    lines = Throttle(60)
    assert [lines.is_due("a"), lines.is_due("a"), lines.is_due("b")] == [True, False, True]
    now_s += 59.9
    assert not lines.is_due("a")
    now_s += 0.1
    assert [lines.is_due("a"), lines.is_due("a")] == [True, False]
    lines.forget()
    assert lines.is_due("a")
    few = Throttle(60, most=2)
    assert [few.is_due(name) for name in "ababca"] == [True, True, False, False, True, True]


# Log lines that come by the thousand: the first of a span are written, the others counted and told.


def test_an_outage_is_logged_each_minute_with_its_last_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    lines = TroubleLog()

    async def ask(times: int) -> None:
        for _ in range(times):
            lines.log_undecided(StoreError("the store is away"), CATALOG.routes[0])

    for _ in range(3):
        asyncio.run(ask(4))
        now[0] += 10.0
    now[0] += 30.0
    asyncio.run(ask(1))
    told = [record.getMessage() for record in caplog.records]
    assert [text for text in told if "more" in text] == [
        "11 more requests were decided without the store within 60 s, the last of them 40 s ago"
    ]
    assert len(told) == 3


# Money as people write it.


def test_money_has_its_currency_and_its_decimals() -> None:
    # https://docs.stripe.com/currencies#zero-decimal and #special-cases
    for amount_cents, currency, written in (
        (1450, "usd", "$14.50"),
        (-483, "usd", "-$4.83"),
        (123_456_789, "usd", "$1,234,567.89"),
        (1450, "jpy", "¥1,450"),  # F-116: "jpy cents".
        (1450, "kwd", "KWD 1.450"),
        (500, "isk", "ISK 5.00"),
        (-50, "chf", "-CHF 0.50"),
        (50, "cad", "CA$0.50"),
    ):
        assert money(amount_cents, currency) == written


CHUNKS = [chat({"content": "Hello, "}), chat({}, finish="stop"), chat(None, usage=chat_usage(3, 4))]


async def test_a_tap_collected_within_a_report_blocks_nothing(store_url: str) -> None:
    async def endpoint(_: Request) -> Response:
        found = exchange.get()
        assert found is not None
        taps = [meterkit.tap(stream_of([{**chunk, "id": "t"} for chunk in CHUNKS]))]
        await anext(taps[0])
        found.update_calls(lambda _: taps.clear())
        return PlainTextResponse("done")

    app = Starlette(routes=[Route("/none", endpoint, methods=["POST"])])
    async with metered(app, store_url) as at:
        await asyncio.wait_for(at.client.post("/none", content=PROMPT), 240)
        assert (0, 1) == await tokens(at.kit)
