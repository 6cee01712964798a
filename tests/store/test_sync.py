"""The kit for code without an event loop, in real threads and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from types import FrameType
from typing import Any

import pytest

from drivers.plans import completed
from drivers.sampled import whole
from llm_payloads.recordings import chat_usage
from meterkit import MeterKit, MeterkitError, UnknownMeterError
from meterkit.catalog import loads

PLANS = completed("""\
meters:
  requests: {unit: request, stripe: {event_name: requests}}
  tokens: {unit: token}
  output_tokens: {unit: token}
  seats: {unit: seat, kind: gauge}
features: [export]
routes: [{match: "*", consume: {requests: 1}}]
plans:
  free:
    price: {amount_cents: 0, interval: month}
    features: [export]
    meters: {requests: {included: 100, overage: bill}, tokens: {included: 1_000, overage: deny}}
  other: {price: {amount_cents: 0, interval: month}, meters: {requests: {included: 0, overage: deny}}}
""")


def kit_of(store_url: str, **settings: Any) -> Any:
    return MeterKit(loads(PLANS), redis_url=store_url, flush=False, **settings).sync()


def recorded(kit: Any, customer: str, meter: str = "requests") -> Any:
    return kit.usage(customer)["meters"][meter]["recorded"]


def has_thread() -> bool:
    return "meterkit" in {thread.name for thread in threading.enumerate()}


def test_all_of_it_works_without_a_loop(any_store_url: str) -> None:
    with kit_of(any_store_url) as kit:
        assert kit.check("ada", "tokens").allowed
        assert kit.consume("ada", "requests", 3).remaining is None
        kit.record("ada", "requests", 2, event_id="job-1")
        kit.record("ada", "requests", 2, event_id="job-1")
        assert 5 == recorded(kit, "ada")
        answer: dict[str, object] = {"object": "chat.completion", "choices": [], "model": "m"}
        call = kit.record_usage("ada", answer | {"usage": chat_usage(2, 3)})
        assert call is not None
        assert (3, 3) == (call.output_tokens, recorded(kit, "ada", "output_tokens"))
        assert kit.allows("ada", "export")
        assert "other" == kit.customers.set_plan("bob", "other").plan
        assert ["bob"] == [customer.customer for customer in kit.customers.list()]
        assert not kit.allows("bob", "export")
        kit.grants.add("bob", {"requests": 7}, grant_id="g")
        assert [7] == [grant.quantity for grant in kit.grants.list("bob")]
        assert (kit.webhooks.backlog().entries, kit.webhooks.dead(), kit.webhooks.redrive()) == (0, [], 0)
        kit.gauges.set("bob", "seats", 3)
        assert 3 == kit.gauges.get("bob", "seats")
        assert "usd" == kit.catalog.currency
        assert kit.settings.flush is False


def test_what_is_reserved_is_captured_or_given_back(any_store_url: str) -> None:
    with kit_of(any_store_url) as kit:
        with kit.reserve("ada", {"tokens": 900}) as reservation:
            assert reservation.decision.allowed
            assert not kit.check("ada", "tokens", 101).allowed
            reservation.capture({"tokens": 40})
        assert 40 == recorded(kit, "ada", "tokens")
        with pytest.raises(KeyError, match="lost"), kit.reserve("ada", {"tokens": 900}):
            raise KeyError("lost")
        with kit.reserve("ada", {"tokens": 900}) as reservation:
            reservation.release()
        assert kit.check("ada", "tokens", 960).allowed
        with kit.reserve("ada", {"tokens": 961}) as reservation:
            assert "included" == reservation.decision.reason


class TimeLimitError(Exception):
    """Celery raises SoftTimeLimitExceeded so, wherever the task is."""


# Python drops what is raised in a callback of a weak reference: the block then goes on as without a signal.
@pytest.mark.filterwarnings(r"ignore:[\s\S]*TimeLimitError:pytest.PytestUnraisableExceptionWarning")
def test_i3_interrupted_reservations_hold_nothing(store_url: str) -> None:
    armed: list[int] = []

    def interrupt(*_: object) -> None:
        if armed:
            armed.clear()
            raise TimeLimitError

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with kit_of(store_url) as kit:
            for nth in range(100):
                with suppress(TimeLimitError):
                    armed.append(nth)
                    signal.setitimer(signal.ITIMER_REAL, (nth + 1) * 2e-5, 0.05)
                    with kit.reserve("ada", {"tokens": 1}):
                        while armed:
                            signal.pause()
            signal.setitimer(signal.ITIMER_REAL, 0)
            kit.record("ada", "tokens", 0)  # Waits for what was settled before.
            assert kit.usage("ada")["meters"]["tokens"]["held"] == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_i3_a_block_whose_end_a_signal_interrupts_holds_nothing(store_url: str) -> None:
    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "__exit__":
            sys.setprofile(None)
            raise TimeLimitError

    with kit_of(store_url) as kit:
        with suppress(TimeLimitError), kit.reserve("ada", {"tokens": 1}):
            sys.setprofile(interrupt)
        kit.record("ada", "tokens", 0)  # Waits for what was settled before.
        assert kit.usage("ada")["meters"]["tokens"]["held"] == 0


def test_many_threads_share_one_thread_and_count_to_the_unit(store_url: str) -> None:
    kit = kit_of(store_url)
    gate = threading.Barrier(16)

    def work(nth: int) -> int:
        gate.wait()  # The first calls of all come at once.
        for _ in range(25):
            kit.record(f"customer-{nth % 2}", "requests", 1)
        return sum(thread.name == "meterkit" for thread in threading.enumerate())

    with ThreadPoolExecutor(16) as pool:
        assert {1} == set(pool.map(work, range(16)))
    assert [200, 200] == [recorded(kit, f"customer-{nth}") for nth in range(2)]
    kit.stop()
    assert not has_thread()


def test_what_is_raised_is_raised_here_with_where_it_comes_from(store_url: str) -> None:
    with kit_of(store_url) as kit:
        with pytest.raises(UnknownMeterError, match="requets") as caught:
            kit.consume("ada", "requets")
        assert "requets" == caught.value.meter
        functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "test_what_is_raised_is_raised_here_with_where_it_comes_from" == functions[0]
        assert "check_counter" in functions


def test_starts_are_counted_and_a_call_after_the_end_begins_anew(store_url: str) -> None:
    kit = kit_of(store_url)
    with kit:
        with kit:
            kit.record("ada", "requests", 1)
        assert has_thread()
    assert not has_thread()
    kit.record("ada", "requests", 1)
    assert 2 == recorded(kit, "ada")
    kit.stop()
    kit.stop()
    # Settings that the store refuses are raised at once.
    with pytest.raises(MeterkitError, match="shards"):
        kit_of(store_url, shards=64).start()
    assert not has_thread()


def test_a_call_that_meets_a_stop_says_so() -> None:
    leaving, gate = threading.Event(), threading.Event()

    @asynccontextmanager
    async def served() -> AsyncGenerator[None]:
        yield
        leaving.set()
        await asyncio.to_thread(gate.wait)

    # Internals: through the kit, a thread meets the end of the loop for microseconds only.
    loops: Any = import_module("meterkit.sync")
    daemon, late = loops.DaemonLoop(served()), loops.BlockingCall(partial(asyncio.sleep, 9))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(daemon.stop)
        leaving.wait()
        daemon.submit(late)
        daemon.loop.call_soon_threadsafe(gate.set)
        with pytest.raises(MeterkitError, match="stopped by another thread: nothing was done"):
            late.wait()
    with pytest.raises(MeterkitError, match="stopped by another thread: nothing was done"):
        daemon.submit(late)


def test_within_a_running_loop_it_says_what_to_do(store_url: str) -> None:
    kit = kit_of(store_url)

    async def forgetful() -> None:
        with pytest.raises(MeterkitError, match="async with MeterKit"):
            kit.consume("ada", "requests")
        with pytest.raises(MeterkitError, match="async with MeterKit"), kit:
            pass

    asyncio.run(forgetful())


def said_by(program: str, directory: Path, store_url: str, plans: str = PLANS) -> str:
    """What a process says; it must end well, and say nothing on stderr."""
    (directory / "plans.yaml").write_text(plans)
    begin = f"from meterkit import MeterKit\nkit = MeterKit(redis_url={store_url!r}, flush=False).sync()\n"
    warnings = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("METERKIT_")}
    environ["METERKIT_STORE_TIMEOUT"] = "10"  # What is slow on a busy machine is not away.
    done = subprocess.run(
        [sys.executable, *warnings, "-c", begin + dedent(program)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environ,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.dear("a process of its own")
@pytest.mark.parametrize(
    ("before", "end"),
    [whole("kit.start()", "sys.exit()"), ("kit.record('ada', 'requests', 1)", "os._exit(0)")],
)
def test_made_before_the_fork_it_counts_in_each_child(
    before: str, end: str, tmp_path: Path, store_url: str
) -> None:
    program = f"""
        import os, sys
        {before}
        for _ in range(3):
            if not os.fork():
                for _ in range(10):
                    kit.record('ada', 'requests', 1)
                with kit.reserve('ada', {{'tokens': 5}}) as reservation:
                    reservation.capture({{'tokens': 4}})
                {end}
        assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
        meters = kit.usage('ada')['meters']
        print(meters['requests']['recorded'], meters['tokens']['recorded'])
    """
    own = int("record" in before)
    assert f"{30 + own} 12\n" == said_by(program, tmp_path, store_url)


@pytest.mark.dear("a process of its own")
def test_a_process_that_forgets_to_stop_it_ends_at_once(tmp_path: Path, store_url: str) -> None:
    program = """
        import threading
        threading.Thread(target=kit.record, args=('ada', 'requests', 1)).start()
        kit.record('ada', 'requests', 1)
        with kit.reserve('ada', {'tokens': 5}):
            pass  # Given back behind the block: sent before the process ends.
    """
    said_by(program, tmp_path, store_url)
    with kit_of(store_url) as kit:
        assert 2 == recorded(kit, "ada")
        assert 0 == kit.usage("ada")["meters"]["tokens"]["held"]
