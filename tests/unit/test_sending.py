"""Intents that are sent to Stripe, tried again, parked or compared: pure tables."""

# Internals: pure tables of outcomes and instants.

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

import pytest

from drivers.delivery import NOW
from drivers.kept_intents import (
    HERE_S,
    NOW_MS,
    PERIOD_MS,
    STAMP_S,
    Counted,
    ObjectsAtStripe,
    Rows,
    keep,
    subscription,
)
from meterkit import FlushReport, MeterKit
from meterkit.customers.links import DeliveryRecord
from meterkit.customers.states import CustomerStates
from meterkit.decisions.customer_state import CustomerState
from meterkit.decisions.keys import meter_token
from meterkit.delivery.delivery_outcome import DeliveryOutcome
from meterkit.delivery.flusher import Flusher
from meterkit.delivery.intent_comparer import READS_APART_MS, IntentComparer, SummaryReading, Verdict, judge
from meterkit.delivery.lost_deliveries import DeliveryGap, IntentLine, LostDeliveries
from meterkit.delivery.restore_recovery import RestoreRecoverer
from meterkit.delivery.restored_store_comparer import RestoredStoreComparer
from meterkit.delivery.sender import IntentSender, ShardLease, group_calls
from meterkit.delivery.usage_cutter import UsageCutter
from meterkit.errors import CustomerError, StoreError, StripeError, StripeUnavailableError
from meterkit.outbox.intents import (
    COMPARABLE_AFTER_MS,
    RESEND_MAX_MS,
    IntentMove,
    SealedIntent,
    SendAttempt,
    StoredIntent,
    can_resend,
    compare_in_ms,
)
from meterkit.outbox.journal import JournalRow
from meterkit.outbox.outbox import Outbox
from meterkit.outbox.sealer import LateUnits, SealResult
from meterkit.store.store import Store
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

# What becomes of an intent after each answer, and what one answer says of all others.


DONE: Final = DeliveryOutcome(kind="delivered", detail="")
NO_METER: Final = DeliveryOutcome(kind="no_meter", detail="no such meter", refused=True)
UNANSWERED: Final = DeliveryOutcome(kind="unknown", detail="no answer", answered=False)
DEAD: Final = DeliveryOutcome(kind="permanent", detail="refused", refused=True)
TOO_OLD: Final = DeliveryOutcome(kind="timestamp", detail="t", refused=True)


def attempt(
    name: str, value: int = 5, *, event: str = "api_requests", first_ms: int = 0, attempts: int = 1
) -> SendAttempt:
    """One whose customer is the first letter of its name."""
    given: dict[str, Any] = {"customer": name[0], "stripe_customer": f"cus_{name[0]}", "period": "0"}
    given |= {"identifier": name, "key": name, "meter_token": "requ", "event_name": event, "value": value}
    sealed = SealedIntent(**given, timestamp=0, sealed_ms=0)
    return SendAttempt(intent=sealed, now_ms=NOW_MS, first_ms=first_ms, attempts=attempts)


class Answers:
    """A transport that answers what it was given, and then that all is delivered."""

    events_per_call = 3

    def __init__(self) -> None:
        self.next = deque[DeliveryOutcome]()
        self.calls: list[list[str]] = []

    async def ready(self) -> DeliveryOutcome | None:
        return None

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        self.calls.append([intent.identifier for intent in intents])
        return self.next.popleft() if self.next else DONE

    async def close(self) -> None:
        pass


class Desk:
    """A sender with a real lease."""

    def __init__(self, outbox: Outbox, store: Store, clock: Clock) -> None:
        self.answers, self.clock = Answers(), clock
        self.sender = IntentSender(store, self.answers, calls_per_s=1e6, calls_at_once=1, timeout_s=10.0)
        self.lease = ShardLease(outbox, 0, clock=clock)

    async def send(
        self, *attempts: SendAttempt, answer: DeliveryOutcome = DONE, passed_s: float = 0.0
    ) -> list[IntentMove]:
        self.answers.next.append(answer)
        moves = await self.sender.send(self.lease, attempts, lambda: passed_s, alone=True)
        self.answers.next.clear()
        return moves

    def advance(self, seconds: int) -> None:
        """Let time pass, and take the lease anew when it is asked for."""
        self.clock.advance(timedelta(seconds=seconds))
        self.lease = ShardLease(self.lease.outbox, 0, clock=self.clock)

    async def calls(self, *attempts: SendAttempt) -> list[list[str]]:
        """The calls that are made for some intents."""
        self.answers.calls.clear()
        await self.sender.send(self.lease, attempts, lambda: 0.0, alone=True)
        return list(self.answers.calls)


@pytest.fixture
async def desk(kit: MeterKit, clock: Clock) -> Desk:
    return Desk(Outbox(kit.store, await kit.store.admin()), kit.store, clock)


COMPARED: Final = "refused (tried before: it is compared with Stripe's summary of its minute)"
PARKED: Final[dict[str, Any]] = {"state": "parked", "why": COMPARED}


async def test_what_is_not_tried_again(desk: Desk) -> None:
    cases: tuple[tuple[DeliveryOutcome, int, dict[str, Any]], ...] = (
        (DEAD, 0, {"state": "dead", "why": "refused", "untried": True}),
        (DEAD, NOW_MS - 60_000, PARKED | {"delay_ms": COMPARABLE_AFTER_MS - 60_000}),
        # Stripe may have taken it with this very try.
        (replace(DEAD, refused=False), 0, PARKED | {"delay_ms": COMPARABLE_AFTER_MS}),
        (TOO_OLD, 0, {"state": "parked", "why": "t", "untried": True}),
    )
    for answer, first_ms, expected in cases:
        one = attempt("a1", first_ms=first_ms)
        assert await desk.send(one, answer=answer) == [IntentMove(intent=one.intent, **expected)]


async def test_what_is_tried_again_waits_twice_as_long_each_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.send(attempt("a1"))
    for share, drawn in ((0.5, min), (1.0, max)):
        monkeypatch.setattr("meterkit.delivery.sender._jitter", drawn)
        for attempts, most_ms in ((1, 1_000), (4, 8_000), (99, 600_000)):
            (move,) = await desk.send(attempt("a1", attempts=attempts), answer=UNANSWERED)
            assert (move.state, move.delay_ms) == ("queued", share * most_ms), move


async def test_a_new_key_names_the_intent_and_keeps_a_sent_batch(desk: Desk) -> None:
    answer = replace(UNANSWERED, new_key=True, batch="b")
    (move,) = await desk.send(attempt("a1"), answer=answer)
    assert (move.key[:3], move.batch) == ("a1-", "b")
    (move,) = await desk.send(attempt("a1"), answer=replace(answer, refused=True))
    assert move.batch == ""


async def test_a_timestamp_is_to_blame_if_clocks_agree(desk: Desk) -> None:
    for apart_s, state, later in ((-60, "parked", "all"), (61, "queued", "none")):
        answer = replace(TOO_OLD, server_time_s=int(desk.clock()) + apart_s)
        desk.clock.set(NOW.replace(second=int(desk.clock()) % 60, microsecond=0))
        (move,) = await desk.send(attempt("a1"), answer=answer)
        assert (move.state, desk.sender.breaker.admits(NOW_MS)) == (state, later)


@pytest.mark.parametrize(
    ("ago_ms", "passed_s", "is_sent"),
    [(RESEND_MAX_MS + 1, 0.0, False), (RESEND_MAX_MS - 500, 0.5, True), (RESEND_MAX_MS - 500, 0.6, False)],
)
async def test_what_stripe_may_have_forgotten_is_compared(
    ago_ms: int, passed_s: float, desk: Desk, *, is_sent: bool
) -> None:
    old, new = attempt("a1", first_ms=NOW_MS - ago_ms), attempt("b1")
    moves = {move.intent.identifier: move for move in await desk.send(old, new, passed_s=passed_s)}
    assert desk.answers.calls == ([["a1", "b1"]] if is_sent else [["b1"]])
    assert moves["b1"].state == "delivered"
    assert moves["a1"].state == ("delivered" if is_sent else "parked")
    left_ms = COMPARABLE_AFTER_MS - ago_ms - round(passed_s * 1_000)
    assert moves["a1"].delay_ms == (0 if is_sent else left_ms)
    assert is_sent or moves["a1"].why.startswith("first tried more than 23 hours ago")


async def test_each_half_of_a_refused_call_is_sent(desk: Desk) -> None:
    three = [attempt(name) for name in ("a1", "b1", "c1")]
    desk.answers.next.extend((DEAD, DONE, DEAD, DONE, DEAD))
    moves = await desk.sender.send(desk.lease, three, lambda: 0.0, alone=True)
    assert desk.answers.calls == [["a1", "b1", "c1"], ["a1"], ["b1", "c1"], ["b1"], ["c1"]]
    assert [move.intent.identifier for move in moves] == ["a1", "b1", "c1"]
    assert [move.state for move in moves] == ["delivered", "delivered", "dead"]


@pytest.mark.parametrize(("asked_ms", "is_renewed"), [(48_999, False), (49_000, True)])
async def test_a_lease_is_renewed_a_second_early(asked_ms: int, desk: Desk, *, is_renewed: bool) -> None:
    assert await desk.lease.outlives(10)
    desk.clock.advance(timedelta(milliseconds=asked_ms))
    assert await desk.lease.outlives(10)
    desk.clock.advance(timedelta(milliseconds=60_000 - asked_ms))
    assert await desk.lease.outlives(0) == is_renewed


async def test_a_refusal_of_a_meter_stops_that_meter_alone(desk: Desk) -> None:
    await desk.send(attempt("a1"), answer=NO_METER)
    assert set(desk.sender.closed_meters()) == {"api_requests"}
    assert await desk.calls(attempt("b1"), attempt("c1", event="tokens")) == [["c1"]]
    desk.advance(60)
    assert set(desk.sender.closed_meters()) == set()
    desk.answers.next.append(NO_METER)
    assert await desk.calls(attempt("b1"), attempt("c1")) == [["b1"]]
    desk.advance(120)
    assert await desk.calls(attempt("b1"), attempt("c1"), attempt("d1")) == [["b1"], ["c1"], ["d1"]]
    assert await desk.calls(attempt("b1"), attempt("c1")) == [["b1", "c1"]]


async def test_a_line_is_suspect_where_nobody_knows_what_came_of_it(desk: Desk) -> None:
    line = ("a", "api_requests")
    await desk.send(attempt("a1"))
    for answer, is_suspect in (
        (UNANSWERED, True),
        (DeliveryOutcome(kind="not_done", detail="no connection", answered=False, refused=True), True),
        (DeliveryOutcome(kind="not_done", detail="busy", refused=True), False),
    ):
        await desk.send(attempt("a1"), answer=answer)
        assert (line in desk.sender.suspects) == is_suspect, answer
        await desk.send(attempt("a2"))
        assert line not in desk.sender.suspects


async def test_ten_unanswered_calls_in_a_row_stop_all_for_a_second(desk: Desk) -> None:
    await desk.send(attempt("a1"))
    for _ in range(9):
        await desk.send(attempt("a1"), answer=UNANSWERED)
    assert desk.sender.breaker.admits(NOW_MS) == "all"
    await desk.send(attempt("a1"), answer=UNANSWERED)
    assert desk.sender.breaker.admits(NOW_MS + 999) == "none"
    assert desk.sender.breaker.admits(NOW_MS + 1_000) == "one"


# One call to Stripe: a customer and meter stay in turn, negative units are alone.


def test_what_goes_in_one_call() -> None:
    for given, calls in (
        ({"a1": 5, "b1": 5, "c1": 5, "d1": 5}, [[["a1", "b1", "c1"]], [["d1"]]]),
        ({"a1": 5, "b1": 5, "b2": 5, "c1": 5, "c2": 5}, [[["a1", "b1", "b2"]], [["c1", "c2"]]]),
        ({"a1": 5, "a2": 5, "a3": 5, "a4": 5, "b1": 5}, [[["a1", "a2", "a3"], ["a4"]], [["b1"]]]),
        # Wherever in its line it comes, and in turn with the others of it.
        ({"a1": -5, "a2": 5, "b1": 5, "c1": 5}, [[["a1"], ["a2"]], [["b1", "c1"]]]),
        ({"a1": 5, "b1": -5, "c1": 5}, [[["a1", "c1"]], [["b1"]]]),
    ):
        found = group_calls([attempt(name, value) for name, value in given.items()], events_per_call=3)
        assert [[[one.intent.identifier for one in call] for call in line] for line in found] == calls


# What becomes of an intent that Stripe may have, by two looks at the summary of its minute.


HOUR_MS = 3_600_000
FIRST_MS = 1_900_000_000_000
LATER_MS = FIRST_MS + 26 * HOUR_MS
ASKED: Final[dict[str, Any]] = {"value": 6, "minute_ms": FIRST_MS, "first_attempt_ms": FIRST_MS}


def look(counted: str | None, at_ms: int = LATER_MS) -> SummaryReading:
    return SummaryReading(counted=None if counted is None else Decimal(counted), at_ms=at_ms)


def test_two_looks_that_agree_decide() -> None:
    cases: tuple[tuple[int, str | None, str | None, Verdict, str], ...] = (
        # One look is none.
        (6, None, "6", "again", ""),
        (6, "6", "6", "delivered", "said 6, twice"),
        (6, "0", "0", "replace", "said 0, twice"),
        # Anything else is a person's.
        (6, "0", "6", "person", "said 0, and 6 later"),
        (6, "12", "12", "person", "says 12, and it is 6"),
        (6, "5", "5", "person", "says 5, and it is 6"),
        (6, None, None, "person", "no meter"),
        # Stripe may say 0 of a negative event that it has.
        (-6, "0", "0", "person", "negative event"),
        # A sum beyond the largest value is split within a minute.
        (10**15 - 1, "999999999999999", "999999999999999", "person", "another intent"),
        (10**15 - 2, "999999999999998", "999999999999998", "delivered", "twice"),
    )
    for value, before, now, verdict, words in cases:
        earlier = None if before is None else look(before)
        found = judge(**dict[str, Any](ASKED, value=value), before=earlier, now=look(now, LATER_MS + 600_000))
        assert (found.verdict, words in found.why) == (verdict, True), found


def test_comparisons_are_ten_minutes_apart_from_26_hours_on() -> None:
    early = judge(**ASKED, before=None, now=look("6", LATER_MS - 1))
    assert (early.verdict, early.wait_ms, early.keep) == ("again", 1, None)
    first = judge(**ASKED, before=None, now=look("6"))
    assert (first.verdict, first.wait_ms, first.keep) == ("again", 600_000, look("6"))
    soon = judge(**ASKED, before=first.keep, now=look("6", LATER_MS + 599_999))
    assert (soon.verdict, soon.wait_ms, soon.keep) == ("again", 1, look("6"))
    assert judge(**ASKED, before=soon.keep, now=look("6", LATER_MS + 600_000)).verdict == "delivered"


def test_what_stripe_does_not_take_any_more_is_not_sent_again() -> None:
    for hours, verdict in ((35 * 24 - 1, "replace"), (35 * 24, "person")):
        now_ms = FIRST_MS + hours * HOUR_MS
        judged = judge(**ASKED, before=look("0", now_ms - 600_000), now=look("0", now_ms))
        assert (judged.verdict, "older than 35 days" in judged.why) == (verdict, verdict == "person")


def test_for_23_hours_a_repeat_is_counted_once() -> None:
    assert can_resend(0, FIRST_MS)
    assert can_resend(FIRST_MS, FIRST_MS + 23 * HOUR_MS)
    assert not can_resend(FIRST_MS, FIRST_MS + 23 * HOUR_MS + 1)
    assert compare_in_ms(FIRST_MS, FIRST_MS + 25 * HOUR_MS) == HOUR_MS
    assert compare_in_ms(FIRST_MS, FIRST_MS + 27 * HOUR_MS) == 0


# The cut before prices change: until when it holds usage back, and when it lets go again.


HELD_MS: Final = 90_000


class PriceCut:
    """A cutter of a kit whose flusher does what a test says."""

    def __init__(self, kit: MeterKit) -> None:
        self.kit = kit
        self.cutter = UsageCutter(kit.store, self._flusher, lambda: ObjectsAtStripe({}))
        self.flush: Callable[[], Awaitable[None]] = self._nothing

    @asynccontextmanager
    async def _flusher(self) -> AsyncGenerator[Any]:
        yield self

    async def _nothing(self) -> None:
        pass

    async def marks(self) -> tuple[int, int]:
        """Until when usage is held back, and the first instant to stamp it with, from now on (ms)."""
        admin, totals = await self.kit.store.admin(), self.kit.store.keys.customer("acme").totals
        found = await admin.ask(admin.client.hmget(totals, [f"{PERIOD_MS}|{name}" for name in "wy"]))
        till_ms, from_ms = (int(mark or 0) for mark in found)
        return till_ms and till_ms - NOW_MS, from_ms and from_ms - NOW_MS


@pytest.fixture
async def cut(kit: MeterKit) -> PriceCut:
    await CustomerStates(kit.store).change("acme", lambda state: replace(state, stripe_customer="cus_acme"))
    return PriceCut(kit)


async def test_usage_is_held_back_for_longer_than_stripe_may_take(cut: PriceCut, clock: Clock) -> None:
    seen = list[tuple[int, int]]()

    async def flush() -> None:
        seen.append(await cut.marks())
        clock.advance(timedelta(seconds=7))

    cut.flush = flush
    async with cut.cutter.cut("acme", {}):
        seen.append(await cut.marks())
    assert seen == [(HELD_MS, 0), (7000 + HELD_MS, 0)]
    # The next whole minute: it is half past.
    assert await cut.marks() == (0, 30_000)


@pytest.mark.parametrize(
    ("error", "held_ms"),
    [
        (StripeError("no such price", status=400), 0),
        (StripeUnavailableError("no answer"), HELD_MS),
        (RuntimeError("the app's own"), HELD_MS),
    ],
)
async def test_a_possible_change_holds_usage_until_it_is_decided(
    error: Exception, held_ms: int, cut: PriceCut
) -> None:
    with pytest.raises(type(error)):
        async with cut.cutter.cut("acme", {}):
            raise error
    assert (await cut.marks())[0] == held_ms


async def test_what_was_not_delivered_holds_nothing_back(cut: PriceCut) -> None:
    await keep(cut.kit, "waiting", 5, state="queued", attempts=3)
    admin, outbox = await cut.kit.store.admin(), cut.kit.store.keys.shard(0, "outbox")
    await admin.ask(admin.client.zadd(outbox, {"waiting": NOW_MS + 3_600_000}))

    async def flush() -> None:
        assert (await cut.marks())[0] == HELD_MS
        # Intents that wait for another try are tried at once.
        assert await admin.ask(admin.client.zscore(outbox, "waiting")) == NOW_MS
        raise StripeUnavailableError("no answer")

    cut.flush = flush
    with pytest.raises(StripeUnavailableError):
        async with cut.cutter.cut("acme", {}):
            pytest.fail("nothing is to be changed")
    assert (await cut.marks())[0] == 0


async def test_an_intent_that_was_not_tried_now_is_waited_for(cut: PriceCut) -> None:
    await keep(cut.kit, "waiting", 5, state="queued", attempts=3)
    admin, keys = await cut.kit.store.admin(), cut.kit.store.keys
    passes = 0

    async def flush() -> None:
        nonlocal passes
        passes += 1
        if passes == 2:  # Another flusher has delivered it.
            await admin.ask(admin.client.hdel(keys.shard(0, "intents"), "waiting"))
            await admin.ask(admin.client.zrem(keys.shard(0, "outbox"), "waiting"))
            await admin.ask(admin.client.delete(keys.customer("acme").totals))

    cut.flush = flush
    async with cut.cutter.cut("acme", {}):
        assert passes == 2


# What a flush counts, and when a flusher in the background flushes and compares.


async def subscribe(kit: MeterKit, **fields: Any) -> None:
    linked = CustomerState(stripe_customer="cus_acme", subscription=subscription(**fields))
    await CustomerStates(kit.store).change("acme", lambda _: linked)


@pytest.mark.parametrize(("waited_s", "looks"), [(119, []), (120, ["acme"]), (3600, ["acme"])])
async def test_usage_two_minutes_old_is_sent_after_a_check(
    kit: MeterKit, clock: Clock, waited_s: int, looks: list[str]
) -> None:
    looked = list[str]()

    async def look(customer: str) -> None:
        looked.append(customer)
        for intent in await kit.outbox.list():
            await kit.outbox.park(intent.identifier, reason="the price has changed")

    await subscribe(kit, plan=None, metered="mtr_1=price_1")
    await keep(kit, "one", 5, state="queued")
    clock.advance(timedelta(seconds=waited_s))
    report = await Flusher(kit.store, Answers(), summaries=Counted({}), look=look).flush()
    assert (looked, report.delivered) == (looks, 0 if looks else 1)


async def test_what_follows_a_page_of_late_intents_is_sent_too(
    kit: MeterKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meterkit.delivery.flusher._INTENTS_PER_PAGE", 1)
    await subscribe(kit, metered="mtr_1=price_1", created_ms=PERIOD_MS - 31 * 86_400_000)
    may_s = PERIOD_MS // 1000 - 86_400
    await keep(kit, "1 of May", 5, state="queued", time=may_s, first=NOW_MS - 60_000, attempts=1)
    await keep(kit, "2 of June", 7, state="queued")
    report = await Flusher(kit.store, Answers()).flush()
    assert (report.parked, report.delivered) == (1, 1)


# What becomes of single intents that Stripe may have: recovered, compared, or too late for their invoice.


MINUTE_S: Final = 60
AT_S: Final = STAMP_S
GAP: Final = f"{AT_S * 1000}-{(AT_S + 600) * 1000}"


async def parked_intents_left(kit: MeterKit) -> dict[str, tuple[str, int]]:
    """The intents that are not delivered, by identifier."""
    return {one.identifier: (one.state, one.quantity) for one in await kit.outbox.list()}


async def test_i6_the_one_unit_at_stripe_is_that_of_its_minute(kit: MeterKit) -> None:
    await keep(kit, "one", 1, restored=GAP)
    await keep(kit, "two", 1, restored=GAP, time=AT_S + MINUTE_S)
    (done,) = await RestoreRecoverer(kit.store, Counted({AT_S + MINUTE_S: 1})).recover()
    assert (done.parked, done.billed, done.sent) == (2, 1, 1)
    assert await parked_intents_left(kit) == {"one": ("queued", 1)}


async def test_i6_a_cut_off_rest_counts_with_its_whole(kit: MeterKit) -> None:
    await keep(kit, "one", 5, restored=GAP)
    await keep(kit, "two", 3, restored=GAP, time=AT_S + MINUTE_S, rest=2)
    (done,) = await RestoreRecoverer(kit.store, Counted({AT_S + MINUTE_S: 5})).recover()
    assert (done.parked, done.billed, done.sent) == (10, 5, 5)
    assert await parked_intents_left(kit) == {"one": ("queued", 5)}


async def test_i6_the_gap_of_a_line_is_that_of_all_its_intents(kit: MeterKit) -> None:
    later = f"{(AT_S + 3_600) * 1000}-{(AT_S + 7_200) * 1000}"
    await keep(kit, "one", 5, restored=GAP)
    await keep(kit, "two", 5, restored=later)
    for minute_s in (AT_S, AT_S + 7_200):
        counted = Counted({minute_s: 4, AT_S - 7_200: -4})
        (done,) = await RestoreRecoverer(kit.store, counted).recover(dry_run=True)
        assert (done.unknown, done.billed) == (4, 4)


async def test_i6_what_was_cut_off_is_not_lost_where_the_store_goes(
    monkeypatch: pytest.MonkeyPatch, kit: MeterKit
) -> None:
    await keep(kit, "one", 5, restored=GAP)
    recoverer = RestoreRecoverer(kit.store, Counted({AT_S: 3}))
    settle = vars(RestoreRecoverer)["_settle_intent"]

    async def once(self: RestoreRecoverer, kept: StoredIntent, billed: int, by: str, why: str = "") -> None:
        if not billed:
            raise StoreError("the store is away") from ConnectionError()
        await settle(self, kept, billed, by, why)

    monkeypatch.setattr(RestoreRecoverer, "_settle_intent", once)
    with pytest.raises(StoreError, match="away"):
        await recoverer.recover()
    monkeypatch.undo()
    (done,) = await recoverer.recover()
    assert (done.parked, done.billed, done.sent) == (5, 3, 2)
    assert [one.quantity for one in await kit.outbox.list()] == [2]


async def test_units_missing_in_the_journal_are_named_if_billed(kit: MeterKit) -> None:
    old = JournalRow("old", "acme", "api_requests", "cus_acme", 60, 1, 60_000)
    for at_stripe, says in ((0, False), (3, True)):
        await keep(kit, "one", 5, restored=GAP)
        recoverer = RestoreRecoverer(kit.store, Counted({AT_S: at_stripe}), Rows(old))
        (done,) = await recoverer.recover(dry_run=True)
        assert (done.billed, "3 of the billed units" in done.advice) == (at_stripe, says)
    with pytest.raises(CustomerError):
        await recoverer.recover("")


@pytest.mark.parametrize(
    ("at_stripe", "verdict", "state"), [(0, "replace", "queued"), (4, "person", "parked")]
)
async def test_i6_restored_usage_is_sent_if_stripe_has_no_more(
    at_stripe: int, verdict: str, state: str, kit: MeterKit
) -> None:
    kept = await keep(kit, "one", 5, restored=GAP)
    comparer = IntentComparer(kit.store, Counted({AT_S: at_stripe}))
    assert await comparer.compare(kept) == verdict
    assert await parked_intents_left(kit) == {"one": (state, 5)}
    # An intent that changed meanwhile waits for the next comparison.
    assert await comparer.compare(replace(kept, text="as it was before")) == "again"


FIRST: Final[dict[str, Any]] = {
    "first": NOW_MS - COMPARABLE_AFTER_MS - 3_600_000,
    "looked": NOW_MS - READS_APART_MS,
}
REBUILT: Final[dict[str, Any]] = {"since": AT_S, "till": AT_S + 4 * MINUTE_S, "together": 9, "base": 20}


def other(value: int) -> Rows:
    """Units that were sent for another Stripe customer."""
    return Rows(JournalRow("other", "acme", "api_requests", "cus_old", AT_S, value, AT_S * 1000))


@pytest.mark.parametrize(
    ("at_stripe", "elsewhere", "look", "verdict"),
    [
        # 29 with the base of 20: all nine are there; none; some.
        (29, 0, 9, "delivered"),
        (20, 0, 0, "replace"),
        (24, 0, 4, "person"),
        # Of the base, six went to another Stripe customer.
        (23, 6, 9, "delivered"),
        (14, 6, 0, "replace"),
    ],
)
async def test_i6_rebuilt_usage_is_compared_without_older_usage(
    at_stripe: int, elsewhere: int, look: int, verdict: str, kit: MeterKit
) -> None:
    kept = await keep(kit, "one", 9, look=look, **FIRST, **REBUILT)
    counted = Counted({AT_S + 3 * MINUTE_S: at_stripe, AT_S + 4 * MINUTE_S: 100})
    assert await IntentComparer(kit.store, counted, other(elsewhere)).compare(kept) == verdict
    expected = {"delivered": [], "replace": [("queued", 9)], "person": [("parked", 9)]}
    assert list((await parked_intents_left(kit)).values()) == expected[verdict]


async def test_i6_of_one_minute_nothing_that_went_elsewhere_counts(kit: MeterKit) -> None:
    kept = await keep(kit, "one", 9, look=9, **FIRST)
    assert await IntentComparer(kit.store, Counted({AT_S: 9}), other(6)).compare(kept) == "delivered"
    assert await parked_intents_left(kit) == {}


# A shard whose store may have forgotten deliveries, step by step.


class Shard:
    def __init__(self, kit: MeterKit, at_stripe: dict[int, int], outbox: Outbox) -> None:
        self.kit, self.outbox, self.report = kit, outbox, FlushReport()
        self.restarts = RestoredStoreComparer(kit.store, Counted(at_stripe))

    async def life(self, **fields: Any) -> dict[str, str]:
        """What the shard says of its life; the fields that are given are set first."""
        admin, key = await self.kit.store.admin(), self.kit.store.keys.shard(0, "life")
        if fields:
            await admin.ask(admin.client.hset(key, mapping=fields))
        kept = await admin.ask(admin.client.hgetall(key))
        return {name.decode(): value.decode() for name, value in kept.items()}

    async def are_over(self) -> bool:
        return await self.restarts.may_send_all(self.outbox, 0, self.report)


async def begun_anew(kit: MeterKit, at_stripe: dict[int, int] | None = None, **fields: Any) -> Shard:
    """A shard of which another life was known, and that has met this one."""
    shard = Shard(kit, at_stripe or {}, Outbox(kit.store, await kit.store.admin()))
    # By the word of an operator: a store in this process has no life of its own to tell.
    await shard.life(known="doubted", noticed="a third life")
    assert not await shard.are_over()
    await shard.life(**fields)
    return shard


async def test_i6_a_shard_that_meets_another_life_waits_2_minutes(kit: MeterKit, clock: Clock) -> None:
    shard = await begun_anew(kit)
    life = await shard.life()
    assert (life["noticed"], life["noticed_ms"]) == ("", f"{NOW_MS}")
    for seconds, is_over in ((119.999, False), (120, True)):
        clock.set(NOW + timedelta(seconds=seconds))
        assert await shard.are_over() == is_over
    assert (await shard.life())["known"] == ""


@pytest.mark.parametrize("both", [True, False])
async def test_i6_one_intent_that_was_tried_is_waited_for_an_hour(
    kit: MeterKit, clock: Clock, *, both: bool
) -> None:
    await keep(kit, "tried", 5, state="queued", first=NOW_MS - 60_000)
    if both:
        await keep(kit, "new", 5, state="queued")
    shard = await begun_anew(kit)
    for minutes, is_over in ((10, False), (59.99, False), (60, True)):
        clock.set(NOW + timedelta(minutes=minutes))
        assert await shard.are_over() == is_over


async def test_late_usage_that_the_comparison_seals_is_logged(
    kit: MeterKit, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    late = LateUnits(customer="acme", period_ms=0, meter_token="api!", quantity=5, is_billed=False)

    async def seal(shard: int, *, due_ms: int | None, most: int) -> SealResult:
        assert (shard, due_ms, most) == (0, None, -1)
        return SealResult(intents=1, late=[late])

    shard = await begun_anew(kit)
    monkeypatch.setattr(shard.outbox, "seal", seal)
    clock.advance(timedelta(minutes=2))
    assert await shard.are_over()
    assert shard.report.sealed == 1
    assert "late usage of customer 'acme'" in caplog.text


# Negative units hide sent units in the sum, and none in the minutes.
HIDING: Final = {HERE_S - 10 * HOUR_MS // 1000: -5}


@pytest.mark.parametrize(("minutes", "parked"), [(59, 1), (60, 1), (62, 0), (90, 0)])
async def test_i6_an_unknown_last_delivery_may_be_within_the_hour(
    kit: MeterKit, clock: Clock, minutes: int, parked: int
) -> None:
    await keep(kit, "new", 5, state="queued", at=NOW_MS - 1)
    shard = await begun_anew(kit, {HERE_S - minutes * MINUTE_S: 5, **HIDING}, seen_ms="0")
    clock.advance(timedelta(minutes=2))
    assert await shard.are_over()
    assert shard.report.parked == parked


@pytest.mark.parametrize(("sealed_after_ms", "parked"), [(-1, 1), (0, 0)])
async def test_i6_later_minutes_are_asked_for_where_one_is_taken(
    kit: MeterKit, clock: Clock, sealed_after_ms: int, parked: int
) -> None:
    for state in ("queued", "parked"):
        await keep(kit, state, 5, state=state, time=HERE_S, at=NOW_MS + sealed_after_ms)
    shard = await begun_anew(kit, {HERE_S + 3 * MINUTE_S: 5, **HIDING}, seen_ms=f"{NOW_MS - 60_000}")
    clock.advance(timedelta(minutes=10))
    assert await shard.are_over()
    assert shard.report.parked == parked


# What Stripe has that a store has forgotten: by sums, by the minutes of the gap, and by the journal.


HOUR_S: Final = 3_600
FORGOTTEN_AT_S: Final = int(NOW.timestamp()) // MINUTE_S * MINUTE_S - 40 * HOUR_S
"""A whole minute: the first instant of each gap here."""
FAR_S: Final = FORGOTTEN_AT_S - 10 * HOUR_S
"""A minute outside of each gap."""
SINCE_MS: Final = (FORGOTTEN_AT_S - 48 * HOUR_S) * 1000
LINE: Final = IntentLine(
    "acme",
    "api_requests",
    "cus_acme",
    [StoredIntent(identifier="one", shard=0, text="", fields={"period": f"{SINCE_MS}"})],
)


def gap(lasts_s: int = 10 * MINUTE_S) -> DeliveryGap:
    return DeliveryGap(from_ms=FORGOTTEN_AT_S * 1000, till_ms=(FORGOTTEN_AT_S + lasts_s) * 1000)


def made(identifier: str, minute_s: int, value: int) -> DeliveryRecord:
    return DeliveryRecord(identifier, "acme", "cus_acme", "api_requests", minute_s, value)


def row(
    identifier: str, value: int, *, delivered_s: int = FORGOTTEN_AT_S, customer: str = "cus_acme"
) -> JournalRow:
    at_ms = delivered_s * 1000
    return JournalRow(identifier, "acme", "api_requests", customer, FORGOTTEN_AT_S, value, at_ms)


async def unknown(
    kit: MeterKit, counted: Counted, *known: DeliveryRecord, journal: Rows | None = None, **asked: Any
) -> int:
    given: dict[str, Any] = {"gap": gap(), "deliveries": {LINE.names: known}, "names": {}, "taken_s": ()}
    return await LostDeliveries(kit.store, counted, journal).count_unknown(LINE, **given | asked)


async def test_i6_minutes_tell_apart_what_hours_do_not(kit: MeterKit) -> None:
    for lasts_s, is_exact, is_by_minutes in (
        (6 * HOUR_S, False, True),
        (6 * HOUR_S + MINUTE_S, False, False),
        (6 * HOUR_S + MINUTE_S, True, True),
        (36 * HOUR_S, True, True),
        (36 * HOUR_S + MINUTE_S, True, False),
    ):
        # With the minute before it, and the five behind it.
        span: dict[str, Any] = {"gap": gap(lasts_s - 5 * MINUTE_S), "is_exact": is_exact}
        hidden = Counted({FORGOTTEN_AT_S: 5, FORGOTTEN_AT_S + MINUTE_S: -5})
        assert await unknown(kit, hidden, **span) == (5 if is_by_minutes else 0), span
        apart = Counted({FORGOTTEN_AT_S: 5, FORGOTTEN_AT_S + 2 * HOUR_S: -5})
        assert await unknown(kit, apart, **span) == 5


async def test_i6_minutes_reach_from_before_the_gap_to_its_last(kit: MeterKit) -> None:
    for minutes, expected in {-2: 0, -1: 5, 0: 5, 10: 5, 11: 0, 13: 0, 14: 0}.items():
        counted = Counted({FORGOTTEN_AT_S + minutes * MINUTE_S: 5, FAR_S: -5})
        assert await unknown(kit, counted) == expected, minutes


LAST_S: Final = FORGOTTEN_AT_S + 10 * MINUTE_S


@pytest.mark.parametrize(
    ("units", "known", "asked"),
    [
        pytest.param({}, [], {"taken_s": {LAST_S}}, id="taken by an intent"),
        pytest.param({LAST_S: 0}, [made("one", LAST_S, 0)], {}, id="taken by a delivery"),
        pytest.param({LAST_S: -2, FAR_S: -10}, [], {}, id="taken at stripe"),
        pytest.param({}, [], {"taken_s": None}, id="not known"),
        pytest.param({}, [], {"is_exact": True}, id="exact"),
        pytest.param({FAR_S: -13}, [], {}, id="a rest"),
    ],
)
async def test_i6_where_the_last_minute_is_taken_3_more_are_asked(
    kit: MeterKit, units: dict[int, int], known: list[DeliveryRecord], asked: dict[str, Any]
) -> None:
    counted = Counted({LAST_S + 3 * MINUTE_S: 5, LAST_S + 4 * MINUTE_S: 7, FAR_S: -12} | units)
    assert await unknown(kit, counted, *known, **asked) == 5
    assert max(counted.asked) == LAST_S + 3 * MINUTE_S


async def test_i6_totals_of_an_event_name_since_the_period_are_known(kit: MeterKit) -> None:
    admin = await kit.store.admin()
    tokens = [meter_token(name) for name in ("requests", "calls", "tokens")]
    totals = {
        f"{SINCE_MS}|{tokens[0]}d": 40,
        f"{SINCE_MS + 1}|{tokens[1]}d": 20,
        f"{SINCE_MS}|{tokens[0]}D": 10,
        f"{SINCE_MS - 1}|{tokens[0]}d": 300,
        f"{SINCE_MS}|{tokens[2]}d": 500,
        f"{SINCE_MS}|{tokens[0]}p": 700,
        f"{SINCE_MS}|label": "none",
    }
    key = kit.store.keys.customer("acme").totals
    await admin.ask(admin.client.hset(key, mapping=totals))
    await admin.ask(admin.client.expire(key, 86_400))
    names = dict(zip(tokens, ("api_requests", "api_requests", "ai_tokens"), strict=True))
    assert await unknown(kit, Counted({FAR_S: 56}), names=names) == 6
    assert await unknown(kit, Counted({FAR_S: 49}), names=names, is_exact=True) == 0
    # By the minutes there are more than by the sum, which usage that was taken back hides.
    counted = Counted({FORGOTTEN_AT_S: 5, FAR_S: 47})
    assert await unknown(kit, counted, names=names, is_exact=True) == 5


async def test_i6_deliveries_of_one_minute_are_known_together(kit: MeterKit) -> None:
    known = [made("one", FORGOTTEN_AT_S, 3), made("two", FORGOTTEN_AT_S, 4)]
    assert await unknown(kit, Counted({FORGOTTEN_AT_S: 12, FAR_S: -12}), *known) == 5
    assert await unknown(kit, Counted({FORGOTTEN_AT_S: 7, FAR_S: -12}), *known) == 0


async def test_i6_one_unit_by_sum_or_journal_needs_no_minutes(kit: MeterKit) -> None:
    counted = Counted({FAR_S: 1})
    assert (await unknown(kit, counted), len(counted.asked)) == (1, 1)
    counted = Counted({FAR_S: 9})
    journal = Rows(row("one", 1))
    assert (await unknown(kit, counted, journal=journal), counted.asked) == (1, [])
    # Where the number matters, the largest one is it.
    assert await unknown(kit, counted, journal=journal, is_exact=True) == 9
    journal = Rows(row("one", 20))
    assert await unknown(kit, counted, journal=journal, is_exact=True) == 20


async def test_i6_units_that_only_the_journal_has_are_forgotten(kit: MeterKit) -> None:
    thirty = row("one", 30)
    cases: tuple[tuple[list[JournalRow], list[DeliveryRecord], int], ...] = (
        ([thirty], [], 30),
        ([thirty], [made("one", FORGOTTEN_AT_S, 30)], 0),
        # Negative events hide no units that were sent.
        ([thirty, row("two", -10)], [], 30),
        ([thirty, row("two", 9, customer="cus_other")], [], 30),
        ([row("one", 30, delivered_s=FORGOTTEN_AT_S - MINUTE_S - 1)], [], 0),
        # What a comparison has counted stands for what the journal has, within the gap.
        ([thirty], [made("counted", FORGOTTEN_AT_S - 2 * MINUTE_S, 25)], 30),
        ([thirty], [made("counted", FORGOTTEN_AT_S, -25)], 30),
        ([thirty], [made("counted", FORGOTTEN_AT_S, 1)], 29),
        ([thirty], [made("counted", FORGOTTEN_AT_S, 45)], 0),
    )
    for written, known, expected in cases:
        assert await unknown(kit, Counted({}), *known, journal=Rows(*written)) == expected, (written, known)
    # The journal says of both that they were sent, the one long before it was restored.
    restored = Rows(thirty, row("two", 25, delivered_s=FORGOTTEN_AT_S - 24 * HOUR_S))
    assert await unknown(kit, Counted({}), made("two", FORGOTTEN_AT_S, 25), journal=restored) == 30


async def test_i6_sums_decide_where_the_journal_is_down(
    kit: MeterKit, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(Rows):
        async def read(self, customer: str, event_name: str, since_ms: int) -> Sequence[JournalRow]:
            del customer, event_name, since_ms
            raise StoreError("the database is away")

    assert await unknown(kit, Counted({FORGOTTEN_AT_S: 5}), journal=Down()) == 5
    assert caplog.messages[-1].endswith("Stripe's sums alone are compared: the database is away")
