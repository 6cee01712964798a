"""Refusals that only an operator can change: a flush of everything ends early, and counts what waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final
from urllib.parse import parse_qsl

import pytest

from drivers.delivery import KEY_REFUSED, Caplog, Desk, aclosing_transport, alerts, desk, flusher_of
from servers.fixed_answers import Asked, answer, answering

pytestmark = pytest.mark.anyio

CUSTOMERS: Final = tuple(f"c{number}" for number in range(25))


@asynccontextmanager
async def hurried_clock(at: Desk) -> AsyncGenerator[None]:
    """Let the kit's clock pass a minute in half a second, so that a circuit breaker's pause ends."""

    async def advance() -> None:
        while True:
            await asyncio.sleep(0.1)
            at.clock.advance(timedelta(seconds=12))

    advancing = asyncio.create_task(advance())
    try:
        yield
    finally:
        advancing.cancel()


@pytest.mark.parametrize("status", [200, 404, 502])
async def test_a_flush_waits_for_what_heals_by_itself(at: Desk, status: int) -> None:
    pages = [answer(status, "<html>The network is busy</html>")]

    def reply(asked: Asked) -> bytes:
        form = dict(parse_qsl(asked.body))
        return pages.pop() if pages else answer(200, {"identifier": form["identifier"]})

    await at.use("acme", "zeta", requests=3)
    async with answering(reply) as proxy, aclosing_transport(proxy.url) as way, hurried_clock(at):
        report = await flusher_of(at.kit, way).flush(everything=True, timeout_s=60)
    assert len(proxy.asked) == 3
    assert (report.delivered, report.left, report.blocked) == (2, 0, {})
    assert report.is_complete


async def test_a_flush_waits_until_the_clocks_agree(at: Desk) -> None:
    await at.use("acme", "zeta", requests=3)
    at.emulator.clock = lambda: at.clock() + (0 if at.emulator.requests else 90)
    async with hurried_clock(at):
        report = await at.flush(everything=True, timeout_s=60)
    assert (report.delivered, report.left, report.blocked) == (2, 0, {})


async def test_a_refused_key_holds_all_intents(at: Desk) -> None:
    await at.use(*CUSTOMERS, requests=3)
    await at.kit.record("c0", "tokens", 105)
    at.emulator.fail_next(times=None, **KEY_REFUSED)
    report = await at.flush(everything=True, timeout_s=120)
    assert len(at.emulator.requests) == 1
    assert (report.retried, report.left) == (1, 26)
    assert report.blocked == {report.why: 26}
    assert report.why.startswith("HTTP 401")
    at.emulator.clear_faults()
    healed = await at.flush(everything=True, timeout_s=120, after=timedelta(minutes=2))
    assert (healed.delivered, healed.left, healed.blocked) == (26, 0, {})


async def test_a_missing_meter_holds_the_intents_of_its_event_name(store_url: str) -> None:
    async with desk(store_url, events=("ai_tokens",)) as at:
        await at.use(*CUSTOMERS, requests=3)
        await at.kit.record("c0", "tokens", 105)
        report = await at.flush(everything=True, timeout_s=120)
        assert (report.delivered, report.left) == (1, 25)
        ((why, count),) = report.blocked.items()
        assert (count, "api_requests" in why) == (25, True)
        at.emulator.add_meter("api_requests")
        healed = await at.flush(everything=True, timeout_s=120, after=timedelta(minutes=2))
        assert (healed.delivered, healed.left, healed.blocked) == (25, 0, {})


async def test_a_later_response_ends_a_refusal_of_the_account(at: Desk) -> None:
    await at.use("acme", "zeta", requests=3)
    at.emulator.fail_next(times=1, **KEY_REFUSED)
    first = await at.flush(everything=True, timeout_s=0)
    assert list(first.blocked.values()) == [2]
    at.emulator.fail_next("error", when="before", status=500, times=None)
    second = await at.flush(everything=True, timeout_s=0, after=timedelta(minutes=2))
    assert (second.retried, second.left, second.blocked) == (1, 2, {})


async def test_a_second_outage_within_an_hour_is_logged_again(at: Desk, caplog: Caplog) -> None:
    await at.link("acme")
    for outages in (1, 2):
        at.emulator.fail_next(times=1, **KEY_REFUSED)
        await at.record_and_flush(3, timeout_s=0, after=timedelta(minutes=2))
        texts = [text.partition(" HTTP 401")[0] for text in alerts(caplog)]
        assert texts == ["delivery to Stripe is paused:"] * outages
        assert (await at.flush(everything=True, after=timedelta(minutes=2))).delivered == 1
