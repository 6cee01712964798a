"""Delivery by meter event streams: batches, and exactly once under whatever becomes of their replies."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import FAULTS, KEY_REFUSED, NOW, desk, until
from drivers.sampled import whole
from drivers.workers import workers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from drivers.delivery import Desk
    from servers.stores import Server

pytestmark = pytest.mark.anyio

STREAM = "/v2/billing/meter_event_stream"
SESSION = "/v2/billing/meter_event_session"


def stream_desk(store_url: str, **settings: Any) -> AbstractAsyncContextManager[Desk]:
    """A desk whose flusher sends streams."""
    return desk(store_url, stripe_transport="v2-stream", **settings)


def calls(at: Desk, path: str = STREAM) -> list[int]:
    """The statuses of all calls of a path."""
    return [request.status for request in at.emulator.requests if request.path == path]


async def record_some(at: Desk, count: int) -> dict[str, int]:
    """Have so many linked customers use something; what each did."""
    used = {f"c{number}": number + 1 for number in range(count)}
    await at.link(*used)
    for customer, quantity in used.items():
        await at.kit.record(customer, "requests", quantity)
    return used


async def test_a_hundred_intents_go_in_a_call(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meterkit.delivery.sending._EVENTS_PER_S", 250)
    async with stream_desk(store_url, shards=1) as at:
        used = await record_some(at, 130)
        began = monotonic()
        report = await at.kit.flush(everything=True)  # The setting chooses the stream.
        assert (report.sealed, report.delivered, report.left) == (130, 130, 0)
        assert {customer: at.accepted(customer) for customer in used} == used
        # Events are paced: the third call waits until the hundred of the second had their time.
        assert monotonic() - began >= 0.4
        # The first call of a process is alone, and of one event.
        assert (calls(at, SESSION), calls(at)) == ([200], [200] * 3)
        usage = (await at.kit.usage("c7"))["meters"]["requests"]
        assert (usage["delivered"], usage["queued"] + usage["leased"]) == (8, 0)
    assert len(at.emulator.events) == 130


@pytest.mark.parametrize(
    ("fault", "skip"),
    [
        (fault, nth % 2)
        for nth, fault in enumerate(
            [*FAULTS, KEY_REFUSED, {"action": "delay", "when": "before", "delay_s": 0.05}]
        )
    ],
)
async def test_i6_each_of_a_batch_is_counted_once_despite_faults(
    store_url: str, fault: Mapping[str, Any], skip: int
) -> None:
    async with stream_desk(store_url, shards=1) as at:
        at.emulator.fail_next(**fault, skip=skip, times=1 if fault["action"] == "delay" else 2)
        used = await record_some(at, 7)
        for _ in range(5):
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=2))
        assert at.emulator.faults == ()
        usage = [(await at.kit.usage(customer))["meters"]["requests"] for customer in used]
    assert {customer: at.accepted(customer) for customer in used} == used
    assert len(at.emulator.events) == 7
    assert [(line["delivered"], line["queued"] + line["leased"]) for line in usage] == [
        (quantity, 0) for quantity in used.values()
    ]


async def test_a_batch_that_is_refused_for_one_event_loses_only_that(store_url: str) -> None:
    async with stream_desk(store_url, shards=1) as at:
        used = await record_some(at, 40)
        at.emulator.fail_next("error", status=400, customer="cus_c13", message="Too odd.", times=None)
        report = await at.flush(everything=True)
        assert (report.delivered, report.dead) == (39, 1)
        assert [(one.customer, one.quantity) for one in report.undelivered] == [("c13", 14)]
        assert "Too odd." in report.undelivered[0].why
        # By halves: 40, 20, 10, 5, 2 or 3, 1, and what is beside each.
        assert len(calls(at)) <= 14
    assert {customer: at.accepted(customer) for customer in used} == used | {"c13": 0}
    assert len(at.emulator.events) == 39


@pytest.mark.dear("a process beside the emulator, killed")
@pytest.mark.parametrize("point", [whole("leased"), "sent", whole("acknowledged")])
async def test_i6_the_next_process_delivers_a_killed_ones_batch_once(valkey: Server, point: str) -> None:
    async with stream_desk(valkey.url, shards=1) as at:
        used = await record_some(at, 5)
        settings = {"shards": 1, "stripe_transport": "v2-stream"}
        options = {"store": valkey.url, "stripe": at.url, "now": NOW.isoformat(), "settings": settings}
        async with workers(1, **options, crash=point) as (doomed,):
            with pytest.raises(EOFError, match="-9"):
                await doomed.ask("flush")
        valkey.command("PEXPIRE", "mk:{0}:lease", 1)
        await until(lambda: valkey.command("EXISTS", "mk:{0}:lease") == 0)
        assert (await at.flush(everything=True)).left == 0
        usage = [(await at.kit.usage(name))["meters"]["requests"]["delivered"] for name in used]
        assert usage == list(used.values())
    assert {customer: at.accepted(customer) for customer in used} == used
    assert len(at.emulator.events) == 5


OF_STREAMS: Final[tuple[Mapping[str, Any], ...]] = (
    *FAULTS,
    KEY_REFUSED,
    {"action": "error", "when": "before", "status": 400, "customer": "cus_acme"},
    {"action": "drop", "when": "before", "path": SESSION},
    {"action": "error", "when": "before", "status": 500, "path": SESSION},
)


@pytest.mark.dear("25 rounds of flushes with faults")
@pytest.mark.parametrize("seed", [0, whole(1), whole(2)])
async def test_i6_after_faults_of_streams_stripe_has_what_was_recorded(store_url: str, seed: int) -> None:
    random = Random(seed)  # noqa: S311 - a schedule, not a secret
    customers = ("acme", "zeta", "mira")
    recorded: dict[str, int] = dict.fromkeys(customers, 0)
    async with stream_desk(store_url, shards=2) as at:
        await at.link(*customers)
        for _ in range(25):
            for customer in customers:
                quantity = random.randrange(1, 50)
                await at.kit.record(customer, "requests", quantity)
                recorded[customer] += quantity
            if random.random() < 0.6:
                at.emulator.fail_next(**random.choice(OF_STREAMS))
            if random.random() < 0.1:
                at.emulator.end_sessions()
            await at.flush(everything=random.random() < 0.3, timeout_s=0)
            at.clock.advance(timedelta(seconds=random.choice([20, 60, 301, 900])))
        at.emulator.clear_faults()
        at.clock.advance(timedelta(hours=27))  # What may have been taken before it was refused is compared.
        for _ in range(4):
            await at.flush(everything=True, timeout_s=0)
            at.clock.advance(timedelta(minutes=11))
        report = await at.flush(everything=True)
        for one in report.undelivered:
            # The refusal that was of contents: Stripe has nothing of it.
            assert (one.customer, one.state) == ("acme", "dead")
            recorded[one.customer] -= one.quantity
        assert report.left == 0
    assert {customer: at.accepted(customer) for customer in customers} == recorded
    stamps = [(event.customer, event.meter, event.timestamp) for event in at.emulator.events]
    assert len(set(stamps)) == len(stamps)
