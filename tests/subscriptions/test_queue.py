"""The queue of Stripe customers to be looked at: nothing twice, nothing lost, nobody by two at once."""
# Internals: the scripts of the queue, which have no model.

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from drivers.delivery import CATALOG
from meterkit import CustomerError, MeterKit, StripeError, StripeUnavailableError
from meterkit.subscriptions.webhooks.hint_scripts import LEASE_MS, Entry
from meterkit.subscriptions.webhooks.queue import HookQueue
from meterkit.subscriptions.webhooks.stripe_events import Hint, Note
from meterkit.subscriptions.webhooks.worker import ATTEMPTS_MAX, Next, next_of
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


pytestmark = pytest.mark.anyio

NOW = datetime(2031, 6, 10, 12, tzinfo=UTC)
LEASE = timedelta(milliseconds=LEASE_MS)


def hint(event: str, customer: str | None = "cus_1", note: str | None = None) -> Hint:
    told = None if note is None else Note(name=note, kind="payment.failed", data={"invoice": note})
    return Hint(event=event, stripe_customer=customer, note=told)


@asynccontextmanager
async def queued(url: str, *, clock: Clock | None = None, **settings: Any) -> AsyncGenerator[HookQueue]:
    given: dict[str, Any] = {"shards": 4, "store_timeout": 10.0} | settings
    async with MeterKit(CATALOG, redis_url=url, clock=clock or Clock(NOW), **given) as kit:
        yield HookQueue(kit.store)


async def one(queue: HookQueue) -> Entry:
    (entry,) = await queue.take(10)
    return entry


async def names(queue: HookQueue) -> list[str]:
    return [entry.stripe_customer for entry in await queue.take(10)]


@pytest.fixture
async def queue(any_store_url: str) -> AsyncGenerator[HookQueue]:
    async with queued(any_store_url) as opened:
        yield opened


@pytest.mark.each_store
async def test_an_event_is_noted_once_taken_once_and_done(queue: HookQueue) -> None:
    assert await queue.add(hint("evt_1", note="in_1")) == "new"
    assert await queue.add(hint("evt_1", note="in_1")) == "duplicate"
    entry = await one(queue)
    assert (entry.stripe_customer, entry.cause, entry.attempts) == ("cus_1", "evt_1", 0)
    assert entry.notes == (Note(name="in_1", kind="payment.failed", data={"invoice": "in_1"}),)
    assert await names(queue) == []
    assert await queue.done(entry, entry.notes)
    assert not await queue.done(entry)
    assert (await queue.waiting()).entries == 0
    # It is known for longer than Stripe repeats it.
    assert await queue.add(hint("evt_1")) == "duplicate"


async def test_a_hint_during_a_look_causes_another_look(queue: HookQueue) -> None:
    await queue.add(hint("evt_1", note="in_1"))
    entry = await one(queue)
    await queue.add(hint("evt_2", note="in_2"))
    assert await names(queue) == []  # Not by two at once.
    assert await queue.done(entry, entry.notes)
    again = await one(queue)
    assert (again.cause, [note.name for note in again.notes]) == ("evt_2", ["in_2"])
    assert await queue.done(again, again.notes)
    assert await names(queue) == []


async def test_the_entry_of_a_worker_that_is_gone_is_taken_by_the_next(any_store_url: str) -> None:
    clock = Clock(NOW)
    async with queued(any_store_url, clock=clock) as queue:
        await queue.add(hint("evt_1", note="in_1"))
        lost = await one(queue)
        clock.advance(LEASE / 2)
        assert await queue.keep(lost)
        clock.advance(LEASE - timedelta(milliseconds=1))
        assert await names(queue) == []
        clock.advance(timedelta(milliseconds=1))
        found = await one(queue)
        assert found.notes == lost.notes
        # The one before has no say any more.
        assert [await queue.keep(lost), await queue.done(lost), await queue.give_up(lost, "x")] == [False] * 3
        assert not await queue.later(lost, "x", delay_ms=0, counts=True)
        assert await queue.done(found)


async def test_a_failed_look_is_retried_later_with_its_notes(
    any_store_url: str,
) -> None:
    clock = Clock(NOW)
    async with queued(any_store_url, clock=clock) as queue:
        await queue.add(hint("evt_1", note="in_1"))
        await queue.later(await one(queue), "no answer", delay_ms=5_000, counts=True)
        await queue.add(hint("evt_2", note="in_2"))
        assert await names(queue) == []
        clock.advance(timedelta(seconds=5))
        entry = await one(queue)
        assert (entry.attempts, [note.name for note in entry.notes]) == (1, ["in_1", "in_2"])
        await queue.later(entry, "held back", delay_ms=0, counts=False, notes=entry.notes[:1])
        entry = await one(queue)
        assert (entry.attempts, [note.name for note in entry.notes]) == (1, ["in_2"])
        await queue.done(entry, entry.notes)
        await queue.add(hint("evt_3"))
        assert (await one(queue)).attempts == 0


async def test_a_named_entry_is_taken_unless_a_worker_has_it(queue: HookQueue) -> None:
    assert await queue.take_one("cus_1") == "gone"
    await queue.look("cus_1", "reconcile", delay_ms=3_600_000)
    assert await names(queue) == []
    entry = await queue.take_one("cus_1")
    assert isinstance(entry, Entry)
    assert (entry.cause, await queue.take_one("cus_1")) == ("reconcile", "taken")
    await queue.done(entry)
    assert await queue.take_one("cus_1") == "gone"


@pytest.mark.each_store
async def test_what_is_given_up_is_kept_and_can_be_tried_again(any_store_url: str) -> None:
    clock = Clock(NOW)
    async with queued(any_store_url, clock=clock) as queue:
        await queue.add(hint("evt_1", note="in_1"))
        await queue.give_up(await one(queue), "linked elsewhere")
        await queue.add(hint("evt_2", "cus_2"))
        clock.advance(timedelta(seconds=1))
        await queue.give_up(await one(queue), "refused")
        dead = await queue.dead()
        assert [(entry.stripe_customer, entry.why, entry.cause, entry.notes) for entry in dead] == [
            ("cus_1", "linked elsewhere", "evt_1", ("in_1",)),
            ("cus_2", "refused", "evt_2", ()),
        ]
        assert dead[1].at_ms - dead[0].at_ms == 1000
        waiting = await queue.waiting()
        assert (waiting.entries, waiting.dead) == (0, 2)
        await queue.redrive(["cus_1"])
        entry = await one(queue)
        assert (entry.cause, entry.attempts, len(entry.notes)) == ("operator", 0, 1)
        assert [entry.stripe_customer for entry in await queue.dead()] == ["cus_2"]


async def test_beyond_200_notes_a_customer_is_queued_without_more(queue: HookQueue) -> None:
    added = [await queue.add(hint(f"evt_{number}", note=f"in_{number}")) for number in range(201)]
    assert added == ["new"] * 200 + ["full"]
    entry = await one(queue)
    assert (len(entry.notes), entry.cause) == (200, "evt_200")
    await queue.done(entry, entry.notes)
    # It had no room, so it was not noted: the same of a later event is.
    await queue.add(hint("evt_later", note="in_200"))
    assert [note.name for note in (await one(queue)).notes] == ["in_200"]


LAST = ATTEMPTS_MAX - 1


@pytest.mark.parametrize(
    ("error", "attempts", "expected"),
    [
        (StripeUnavailableError("x", status=500), 0, Next(step="later", scope="answer", delay_ms=5_000)),
        (StripeUnavailableError("x"), LAST, Next(step="later", scope="answer", delay_ms=3_600_000)),
        (TimeoutError(), LAST, Next(step="later", scope="answer", delay_ms=3_600_000)),
        (StripeError("x", status=403), 0, Next(step="later", scope="key", delay_ms=5_000, counts=False)),
        (StripeError("x", status=400), 0, Next(step="later", scope="entry", delay_ms=5_000)),
        (StripeError("x", status=400), LAST, Next(step="dead", scope="entry")),
        (KeyError("odd"), LAST, Next(step="dead", scope="entry")),
        (CustomerError("linked elsewhere"), 0, Next(step="dead", scope="entry")),
    ],
)
def test_what_becomes_of_a_failed_look(error: Exception, attempts: int, expected: Next) -> None:
    assert next_of(error, attempts) == expected
