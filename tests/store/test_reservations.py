"""Reservations off the request: held over all limits at once, captured once, gone by themselves."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from drivers.subscribed_customer import kit_of
from faults.refusals import stopped
from llm_payloads.recordings import chat_usage
from meterkit import MeterKit, MeterkitError, QuantityError, StoreError, UnknownMeterError
from meterkit.testing import Clock
from servers.stores import Server

pytestmark = pytest.mark.anyio

PLANS = """
meters:
  requests:      {unit: request}
  output_tokens: {unit: token, stripe: {event_name: out}}
  large_output:  {unit: token, from: output_tokens, where: {model: "*-large*"}, stripe: {event_name: large}}
  seconds:       {unit: second}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      output_tokens:
        rate: [1000/hour, {limit: 500/minute, algorithm: token-bucket, burst: 2000}]
        included: 5000
        overage: deny
      seconds: {included: 60, overage: deny}
"""


async def row(kit: MeterKit, meter: str = "output_tokens") -> tuple[int, int, Any]:
    """Recorded, held, remaining."""
    found = (await kit.usage("acme"))["meters"][meter]
    return found["recorded"], found["held"], found["remaining"]


async def left(kit: MeterKit, meter: str = "output_tokens") -> int:
    """How much more the customer may use now, over all limits."""
    low, high = 0, 10_000
    while low < high:
        middle = (low + high + 1) // 2
        if (await kit.check("acme", meter, middle)).allowed:
            low = middle
        else:
            high = middle - 1
    return low


async def test_what_is_reserved_is_held_and_what_is_captured_counts(kit: MeterKit) -> None:
    async with kit.reserve("acme", {"output_tokens": 800, "seconds": 10}) as reservation:
        assert reservation.decision.allowed
        assert (await row(kit), await row(kit, "seconds")) == ((0, 800, 4200), (0, 10, 50))
        assert await left(kit) == 200
        await reservation.capture({"output_tokens": 300, "seconds": 4})
        assert (await row(kit), await row(kit, "seconds")) == ((300, 0, 4700), (4, 0, 56))
        # The rate counts the true quantity, in the window that was counted in.
        assert await left(kit) == 700
    assert await row(kit) == (300, 0, 4700)


async def test_a_reservation_that_is_not_captured_is_released(kit: MeterKit) -> None:
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error):
            async with kit.reserve("acme", {"output_tokens": 800}):
                raise error
    async with kit.reserve("acme", {"output_tokens": 800}):
        pass
    async with kit.reserve("acme", {"output_tokens": 800}) as reservation:
        await reservation.release()
        await reservation.release()
    await kit.record("acme", "seconds", 0)  # Waits for what was settled before.
    assert await row(kit) == (0, 0, 5000)
    assert await left(kit) == 1000


async def test_a_reservation_is_all_or_nothing(kit: MeterKit) -> None:
    async with kit.reserve("acme", {"output_tokens": 800, "seconds": 61}) as reservation:
        assert (reservation.decision.allowed, reservation.decision.reason) == (False, "included")
        assert await row(kit) == (0, 0, 5000)
        assert await left(kit) == 1000
        # Usage is a fact.
        await reservation.capture({"output_tokens": 5})
        with pytest.raises(MeterkitError, match="captured or released once"):
            await reservation.capture({"output_tokens": 5})
    assert await row(kit) == (5, 0, 4995)


async def test_a_capture_may_exceed_the_limit(kit: MeterKit) -> None:
    async with kit.reserve("acme", {"output_tokens": 100}) as reservation:
        await reservation.capture({"output_tokens": 5100})
    assert await row(kit) == (5100, 0, 0)
    refused = await kit.check("acme", "output_tokens")
    assert (refused.allowed, refused.reason) == (False, "rate")


async def test_a_correction_goes_to_the_window_that_was_counted_in(kit: MeterKit, clock: Clock) -> None:
    clock.advance(timedelta(minutes=59))
    async with kit.reserve("acme", {"output_tokens": 1000}) as reservation:
        clock.advance(timedelta(minutes=30, seconds=30))  # Half of the window before still counts.
        assert await left(kit) == 500
        await reservation.capture({"output_tokens": 600})
    assert await left(kit) == 700
    async with kit.reserve("acme", {"output_tokens": 700}) as reservation:
        clock.advance(timedelta(hours=2))  # None of it counts any more.
        await reservation.capture({"output_tokens": 10})
    assert await left(kit) == 1000


async def test_what_cannot_be_reserved_or_captured_is_refused(kit: MeterKit) -> None:
    reserve: Any = kit.reserve
    for error, said, given in (
        (QuantityError, "-1", {"output_tokens": -1}),
        (UnknownMeterError, "did you mean 'seconds'", {"second": 1}),
        (MeterkitError, "found none; name at least one meter", {}),
        (UnknownMeterError, "found a value of type list", ["seconds"]),
    ):
        with pytest.raises(error, match=said):
            reserve("acme", given)
    with pytest.raises(MeterkitError, match="is decided when its block begins"):
        _ = reserve("acme", {"seconds": 1}).decision
    async with reserve("acme", {"output_tokens": 10}) as reservation:
        with pytest.raises(QuantityError):
            await reservation.capture({"output_tokens": 1.5})
        await reservation.capture({"output_tokens": 10})


async def test_a_derived_meter_is_reported_under_its_own_event(kit: MeterKit) -> None:
    await kit.customers.override("acme", {"output_tokens": {"included": 100, "overage": "bill"}})
    answer: dict[str, Any] = {"object": "chat.completion", "choices": []}
    for model, tokens in (("gpt-large-2", 150), ("gpt-small", 30)):
        await kit.record_usage("acme", answer | {"model": model, "usage": chat_usage(0, tokens)})
    meters = (await kit.usage("acme"))["meters"]
    source, derived = meters["output_tokens"], meters["large_output"]
    # The source counts the whole; what is beyond included goes to Stripe under the model's own event.
    assert (source["recorded"], source["overage"], source["unlinked"]) == (180, 80, 30)
    assert (derived["recorded"], derived["unlinked"]) == (150, 50)


async def test_i7_a_kit_that_stops_gives_back_what_blocks_still_hold(store_url: str, clock: Clock) -> None:
    kit = kit_of(store_url, clock, PLANS)
    await kit.start()
    async with kit.reserve("acme", {"output_tokens": 800}) as reservation:
        await kit.stop()
        async with kit_of(store_url, clock, PLANS) as other:
            assert await row(other) == (0, 0, 5000)
            assert await left(other) == 1000
            # What was used is a fact all the same.
            await reservation.capture({"output_tokens": 30})
            assert await row(other) == (30, 0, 4970)
    await kit.stop()


async def test_i3_a_cancelled_check_releases_no_other_holds(kit: MeterKit, valkey: Server) -> None:
    async with kit.reserve("acme", {"output_tokens": 800, "seconds": 50}):
        for meter, quantity in (("output_tokens", 100), ("seconds", 10)):
            with stopped(valkey):
                check = asyncio.create_task(kit.check("acme", meter, quantity))
                await asyncio.sleep(0)
                check.cancel()
                await asyncio.gather(check, return_exceptions=True)
            await kit.record("acme", meter, 0)  # Waits for what was settled before.
        assert ((await row(kit))[:2], (await row(kit, "seconds"))[:2]) == ((0, 800), (0, 50))


async def test_i3_a_reservation_cancelled_by_its_reply_holds_nothing(kit: MeterKit) -> None:
    await kit.record("acme", "seconds", 1)
    lane: Any = await kit.store.lane()
    call = lane.call

    def cancelling(asked: Any) -> asyncio.Future[Any]:
        lane.call = call
        reply: asyncio.Future[Any] = call(asked)
        reply.add_done_callback(lambda _: reserving.cancel())  # Before whoever waits for it goes on.
        return reply

    async def reserve() -> None:
        async with kit.reserve("acme", {"seconds": 5}):
            raise AssertionError("it was cancelled")

    lane.call = cancelling
    reserving = asyncio.create_task(reserve())
    with pytest.raises(asyncio.CancelledError):
        await reserving
    await kit.record("acme", "seconds", 0)  # Waits for what was settled before.
    assert (await row(kit, "seconds"))[:2] == (1, 0)


JOB: dict[str, Any] = {"id": "resp_1", "object": "response", "background": True, "output": [], "model": "m"}
ENDED = JOB | {"status": "completed", "usage": {"input_tokens": 6, "output_tokens": 400, "total_tokens": 406}}


@pytest.mark.parametrize("is_captured_first", [True, False])
async def test_i6_a_captured_job_counts_once(kit: MeterKit, *, is_captured_first: bool) -> None:
    """The worker that waits for a background response captures it; the provider's webhook reports it, too."""
    await kit.record_usage("acme", JOB | {"status": "queued"})
    async with kit.reserve("acme", {"output_tokens": 800, "seconds": 5}) as reservation:
        for captures in (is_captured_first, not is_captured_first):
            if captures:
                await reservation.capture(ENDED)
            else:
                await kit.record_usage(None, ENDED)
    assert ((await row(kit))[:2], (await row(kit, "seconds"))[:2]) == ((400, 0), (5, 0))


async def test_a_captured_job_is_paid_by_its_owner(kit: MeterKit) -> None:
    await kit.record_usage("bob", JOB | {"status": "queued"})
    async with kit.reserve("acme", {"output_tokens": 800}) as reservation:
        captures = [reservation.capture(ENDED) for _ in range(2)]
        found = await asyncio.gather(*captures, return_exceptions=True)
    assert [str(one) for one in found if one] == [
        "a reservation is captured or released once, within its block"
    ]
    assert (await row(kit))[:2] == (0, 0)
    assert (await kit.usage("bob"))["meters"]["output_tokens"]["recorded"] == 400


async def test_a_capture_waits_for_the_jobs_it_counts(kit: MeterKit) -> None:
    """A forked child of a queue of jobs ends without another word: what was only sent was lost."""
    await kit.record("bob", "output_tokens", 1)
    await kit.record_usage("bob", JOB | {"status": "queued"})
    counters = kit.store.keys.customer("bob").counters
    client = (await kit.store.admin()).client
    await client.hset(counters, mapping=dict.fromkeys(await client.hkeys(counters), "x"))
    async with kit.reserve("acme", {"output_tokens": 800}) as reservation:
        with pytest.raises(StoreError, match="not recorded: that of 'bob'"):
            await reservation.capture(ENDED)


async def test_a_reservation_is_entered_once(kit: MeterKit) -> None:
    reservation = kit.reserve("acme", {"seconds": 5})

    async def use() -> None:
        async with reservation:
            pass

    found = await asyncio.gather(use(), use(), return_exceptions=True)
    assert [str(one) for one in found if one] == ["a reservation serves one block; take another one"]
    await kit.record("acme", "seconds", 0)  # Waits for what was settled before.
    assert (await row(kit, "seconds"))[:2] == (0, 0)


async def test_a_reservation_is_not_captured_in_another_loop(kit: MeterKit) -> None:
    async with kit.reserve("acme", {"seconds": 5}) as reservation:

        def elsewhere() -> None:
            with pytest.raises(MeterkitError, match="in the event loop that its block runs in"):
                asyncio.run(reservation.capture({"seconds": 1}))

        await asyncio.to_thread(elsewhere)
        await reservation.capture({"seconds": 2})
        assert (await row(kit, "seconds"))[:2] == (2, 0)
