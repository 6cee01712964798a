"""What becomes of an intent after each answer, and what one answer says of all others."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import pytest

from drivers.delivery import NOW, kit_for
from meterkit.decisions.ambiguity import COMPARED_MS, SURE_MS
from meterkit.delivery.outcomes import Outcome
from meterkit.delivery.sending import Lease, Sender
from meterkit.delivery.suspects import line_of
from meterkit.outbox.intents import Attempt, Move, Sealed
from meterkit.outbox.outbox import Outbox
from meterkit.testing import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from meterkit.store.store import Store

pytestmark = pytest.mark.anyio

NOW_MS: Final = int(NOW.timestamp() * 1_000)
DONE: Final = Outcome(kind="delivered", detail="")
NO_METER: Final = Outcome(kind="no_meter", detail="no such meter", refused=True)
NO_KEY: Final = Outcome(kind="systemic", detail="no such key", refused=True)
UNANSWERED: Final = Outcome(kind="unknown", detail="no answer", answered=False)
DEAD: Final = Outcome(kind="permanent", detail="refused", refused=True)


def attempt(
    name: str, *, event: str = "api_requests", first_ms: int = 0, attempts: int = 1, now_ms: int = NOW_MS
) -> Attempt:
    """One whose customer is the first letter of its name."""
    sealed = Sealed(
        identifier=name,
        customer=name[0],
        stripe_customer=f"cus_{name[0]}",
        period="0",
        meter_token="requ",
        event_name=event,
        value=5,
        timestamp=0,
        key=name,
        sealed_ms=0,
        due_ms=0,
    )
    return Attempt(intent=sealed, now_ms=now_ms, first_ms=first_ms, attempts=attempts)


class Answers:
    """A transport that answers what it was given, and then that all is delivered."""

    most = 3

    def __init__(self) -> None:
        self.next = deque[Outcome]()
        self.not_ready: Outcome | None = None
        self.calls: list[list[str]] = []

    async def ready(self) -> Outcome | None:
        return self.not_ready

    async def send(self, *intents: Sealed) -> Outcome:
        self.calls.append([intent.identifier for intent in intents])
        return self.next.popleft() if self.next else DONE

    async def close(self) -> None:
        pass


class Desk:
    """A sender with a real lease."""

    def __init__(self, store: Store, sender: Sender, lease: Lease, answers: Answers, clock: Clock) -> None:
        self.store, self.sender, self.lease, self.answers, self.clock = store, sender, lease, answers, clock

    async def send(
        self, *attempts: Attempt, answer: Outcome = DONE, alone: bool = True, passed_s: float = 0.0
    ) -> list[Move]:
        self.answers.next.append(answer)
        moves = await self.sender.send(self.lease, attempts, lambda: passed_s, alone=alone)
        self.answers.next.clear()
        return moves

    def advance(self, seconds: int) -> None:
        """Let time pass, and take the lease anew when it is asked for."""
        self.clock.advance(timedelta(seconds=seconds))
        self.lease = Lease(self.lease.outbox, 0, clock=self.clock)

    async def calls(self, *attempts: Attempt, alone: bool = True) -> list[list[str]]:
        """The calls that are made for some intents."""
        self.answers.calls.clear()
        await self.sender.send(self.lease, attempts, lambda: 0.0, alone=alone)
        return list(self.answers.calls)


@asynccontextmanager
async def desk() -> AsyncGenerator[Desk]:
    clock, answers = Clock(NOW), Answers()
    async with kit_for("memory://", "http://127.0.0.1:9", clock=clock) as kit:
        store = kit.store
        sender = Sender(store, answers, calls_per_s=1e6, calls_at_once=1, timeout_s=10.0)
        lease = Lease(Outbox(store, await store.admin()), 0, clock=store.clock)
        yield Desk(store, sender, lease, answers, clock)


def test_a_line_is_of_a_customer_and_an_event_name() -> None:
    assert line_of(attempt("ada", event="tokens").intent) == ("a", "tokens")


@pytest.mark.parametrize(
    ("answer", "first_ms", "expected"),
    [
        (replace(DONE, batch="b"), 0, {"state": "delivered", "batch": "b"}),
        (Outcome(kind="duplicate", detail="has it", refused=True), 0, {"state": "delivered"}),
        (DEAD, 0, {"state": "dead", "why": "refused", "untried": True}),
        (
            DEAD,
            NOW_MS - 60_000,
            {
                "state": "parked",
                "why": "refused (tried before: it is compared with Stripe's summary of its minute)",
                "delay_ms": COMPARED_MS - 60_000,
            },
        ),
        # Stripe may have taken it with this very try.
        (
            replace(DEAD, refused=False),
            0,
            {
                "state": "parked",
                "why": "refused (tried before: it is compared with Stripe's summary of its minute)",
                "delay_ms": COMPARED_MS,
            },
        ),
        (
            Outcome(kind="mapping", detail="m", refused=True),
            0,
            {"state": "parked", "why": "m", "untried": True},
        ),
        (Outcome(kind="mapping", detail="m", refused=True), NOW_MS - 1, {"state": "parked", "why": "m"}),
        (
            Outcome(kind="timestamp", detail="t", refused=True),
            0,
            {"state": "parked", "why": "t", "untried": True},
        ),
    ],
)
async def test_what_is_not_tried_again(answer: Outcome, first_ms: int, expected: dict[str, Any]) -> None:
    async with desk() as at:
        one = attempt("a1", first_ms=first_ms)
        assert await at.send(one, answer=answer) == [Move(intent=one.intent, **expected)]


@pytest.mark.parametrize(
    ("answer", "attempts", "most_ms"),
    [
        (UNANSWERED, 1, 1_000),
        (UNANSWERED, 2, 2_000),
        (UNANSWERED, 4, 8_000),
        (UNANSWERED, 99, 600_000),
        (Outcome(kind="bug", detail="b"), 1, 60_000),
        (Outcome(kind="bug", detail="b"), 3, 240_000),
        (Outcome(kind="bug", detail="b"), 9, 600_000),
    ],
)
async def test_what_is_tried_again_waits_twice_as_long_each_time(
    answer: Outcome, attempts: int, most_ms: int
) -> None:
    async with desk() as at:
        (move,) = await at.send(attempt("a1", attempts=attempts), answer=answer)
        assert move.state == "queued"
        assert most_ms // 2 <= move.delay_ms <= most_ms


@pytest.mark.parametrize(
    ("answer", "first_ms", "untried"),
    [
        (Outcome(kind="not_done", detail="busy", refused=True), 0, True),
        (Outcome(kind="not_done", detail="busy", refused=True), NOW_MS - 1, False),
        (UNANSWERED, 0, False),
    ],
)
async def test_what_stripe_refused_for_certain_was_not_tried(
    answer: Outcome, first_ms: int, *, untried: bool
) -> None:
    async with desk() as at:
        (move,) = await at.send(attempt("a1", first_ms=first_ms), answer=answer)
        assert (move.untried, move.key, move.why) == (untried, "", answer.detail)


async def test_a_new_key_names_the_intent_and_a_batch_is_kept_where_stripe_may_have_it() -> None:
    async with desk() as at:
        answer = replace(UNANSWERED, new_key=True, batch="b")
        (move,) = await at.send(attempt("a1"), answer=answer)
        assert move.key.startswith("a1-")
        assert move.batch == "b"
        (move,) = await at.send(attempt("a1"), answer=replace(answer, refused=True))
        assert move.batch == ""


@pytest.mark.parametrize(
    ("apart_s", "state", "later"),
    [(60, "parked", "all"), (61, "queued", "none"), (-60, "parked", "all"), (-61, "queued", "none")],
)
async def test_a_timestamp_is_to_blame_where_the_clocks_agree_to_a_minute(
    apart_s: int, state: str, later: str
) -> None:
    async with desk() as at:
        server_s = int(at.clock()) + apart_s
        answer = Outcome(kind="timestamp", detail="t", refused=True, server_time_s=server_s)
        at.clock.set(NOW.replace(second=int(at.clock()) % 60, microsecond=0))
        (move,) = await at.send(attempt("a1"), answer=answer)
        assert (move.state, at.sender.breaker.admits(NOW_MS)) == (state, later)


@pytest.mark.parametrize(
    ("ago_ms", "passed_s", "is_sent"),
    [
        (SURE_MS, 0.0, True),
        (SURE_MS + 1, 0.0, False),
        (SURE_MS - 500, 0.5, True),
        (SURE_MS - 500, 0.6, False),
    ],
)
async def test_what_stripe_may_have_forgotten_is_compared_and_not_sent_again(
    ago_ms: int, passed_s: float, *, is_sent: bool
) -> None:
    async with desk() as at:
        old, new = attempt("a1", first_ms=NOW_MS - ago_ms), attempt("b1")
        moves = {move.intent.identifier: move for move in await at.send(old, new, passed_s=passed_s)}
        assert at.answers.calls == ([["a1", "b1"]] if is_sent else [["b1"]])
        assert moves["b1"].state == "delivered"
        assert moves["a1"].state == ("delivered" if is_sent else "parked")
        left_ms = COMPARED_MS - ago_ms - round(passed_s * 1_000)
        assert moves["a1"].delay_ms == (0 if is_sent else left_ms)
        assert is_sent or moves["a1"].why.startswith("first tried more than 23 hours ago")


async def test_a_comparison_that_is_due_is_due_in_a_millisecond() -> None:
    async with desk() as at:
        (move,) = await at.send(attempt("a1", first_ms=NOW_MS - 2 * COMPARED_MS))
        assert (move.state, move.delay_ms, at.answers.calls) == ("parked", 1, [])


async def test_of_a_call_that_is_refused_for_its_contents_each_half_is_sent() -> None:
    async with desk() as at:
        three = [attempt(name) for name in ("a1", "b1", "c1")]
        at.answers.next.extend((DEAD, DONE, DEAD, DONE, DEAD))
        moves = await at.sender.send(at.lease, three, lambda: 0.0, alone=True)
        assert at.answers.calls == [["a1", "b1", "c1"], ["a1"], ["b1", "c1"], ["b1"], ["c1"]]
        assert [(move.intent.identifier, move.state) for move in moves] == [
            ("a1", "delivered"),
            ("b1", "delivered"),
            ("c1", "dead"),
        ]


async def test_of_a_call_that_is_not_answered_nothing_is_sent_apart() -> None:
    async with desk() as at:
        moves = await at.send(attempt("a1"), attempt("b1"), answer=UNANSWERED)
        assert at.answers.calls == [["a1", "b1"]]
        assert [move.state for move in moves] == ["queued", "queued"]


@pytest.mark.parametrize(("first_ms", "untried"), [(0, True), (NOW_MS - 1, False)])
async def test_what_is_stopped_is_given_back_as_it_was(first_ms: int, *, untried: bool) -> None:
    async with desk() as at:
        at.sender.stopping.set()
        one = attempt("a1", first_ms=first_ms)
        assert await at.send(one) == [Move(intent=one.intent, state="queued", untried=untried)]
        assert at.answers.calls == []


async def test_without_the_lease_nothing_is_sent_or_moved() -> None:
    async with desk() as at:
        other = Lease(at.lease.outbox, 0, clock=at.clock)
        assert await other.outlives(1)
        at.lease = Lease(Outbox(at.store, at.lease.outbox.admin), 0, clock=at.clock)
        assert (await at.send(attempt("a1")), at.answers.calls) == ([], [])


@pytest.mark.parametrize(("asked_ms", "is_renewed"), [(48_999, False), (49_000, True)])
async def test_a_lease_is_renewed_a_second_before_it_would_be_too_short(
    asked_ms: int, *, is_renewed: bool
) -> None:
    async with desk() as at:
        assert await at.lease.outlives(10)
        at.clock.advance(timedelta(milliseconds=asked_ms))
        assert await at.lease.outlives(10)
        at.clock.advance(timedelta(milliseconds=60_000 - asked_ms))
        assert await at.lease.outlives(0) == is_renewed


@pytest.mark.parametrize(("after_ms", "is_held"), [(59_999, True), (60_000, False), (90_000, False)])
async def test_a_lease_that_ran_out_is_not_taken_again_as_another_may_have_had_it(
    after_ms: int, *, is_held: bool
) -> None:
    async with desk() as at:
        assert await at.lease.outlives(1)
        at.clock.advance(timedelta(milliseconds=after_ms))
        assert await at.lease.outlives(1) == is_held


async def test_where_the_transport_is_not_ready_nothing_is_sent() -> None:
    async with desk() as at:
        at.answers.not_ready = replace(UNANSWERED, refused=True)
        (move,) = await at.send(attempt("a1"))
        assert (move.state, move.untried, at.answers.calls) == ("queued", True, [])


async def test_a_refusal_of_the_account_stops_all_until_one_has_passed() -> None:
    async with desk() as at:
        assert at.sender.breaker.admits(NOW_MS) == "one"
        await at.send(attempt("a1"), answer=NO_KEY)
        assert await at.calls(attempt("b1")) == []
        at.advance(59)
        assert await at.calls(attempt("b1")) == []
        at.advance(1)
        assert await at.calls(attempt("b1"), alone=False) == []
        assert await at.calls(attempt("b1")) == [["b1"]]
        assert await at.calls(attempt("b1"), alone=False) == [["b1"]]


async def test_a_refusal_of_a_meter_stops_that_meter_and_one_shows_when_it_is_there() -> None:
    async with desk() as at:
        await at.send(attempt("a1"), answer=NO_METER)
        assert set(at.sender.closed_meters()) == {"api_requests"}
        assert await at.calls(attempt("b1"), attempt("c1", event="tokens")) == [["c1"]]
        at.advance(60)
        assert set(at.sender.closed_meters()) == set()
        at.answers.next.append(NO_METER)
        assert await at.calls(attempt("b1"), attempt("c1")) == [["b1"]]
        at.advance(120)
        assert await at.calls(attempt("b1"), attempt("c1"), attempt("d1")) == [["b1"], ["c1"], ["d1"]]
        assert await at.calls(attempt("b1"), attempt("c1")) == [["b1", "c1"]]


async def test_a_meter_that_maps_otherwise_stops_nothing() -> None:
    async with desk() as at:
        await at.send(attempt("a1"), answer=Outcome(kind="mapping", detail="m", refused=True))
        assert set(at.sender.closed_meters()) == set()
        assert await at.calls(attempt("b1"), alone=False) == [["b1"]]


@pytest.mark.parametrize(
    ("answer", "is_suspect"),
    [
        (UNANSWERED, True),
        (Outcome(kind="unknown", detail="500"), True),
        (Outcome(kind="not_done", detail="no connection", answered=False, refused=True), True),
        (Outcome(kind="not_done", detail="busy", refused=True), False),
        (DEAD, False),
    ],
)
async def test_a_line_is_suspect_where_nobody_knows_what_came_of_it(
    answer: Outcome, *, is_suspect: bool
) -> None:
    async with desk() as at:
        await at.send(attempt("a1"))
        await at.send(attempt("a1"), answer=answer)
        assert (("a", "api_requests") in at.sender.suspects) == is_suspect
        await at.send(attempt("a2"))
        assert ("a", "api_requests") not in at.sender.suspects


async def test_ten_calls_in_a_row_without_an_answer_stop_all_for_a_second() -> None:
    async with desk() as at:
        await at.send(attempt("a1"))
        for _ in range(9):
            await at.send(attempt("a1"), answer=UNANSWERED)
        assert at.sender.breaker.admits(NOW_MS) == "all"
        await at.send(attempt("a1"), answer=UNANSWERED)
        assert at.sender.breaker.admits(NOW_MS + 999) == "none"
        assert at.sender.breaker.admits(NOW_MS + 1_000) == "one"


async def test_alerts_are_of_all_of_a_meter_or_of_one_intent(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as at:
        for name in ("a1", "b1"):
            await at.send(attempt(name), answer=DEAD)
        await at.send(attempt("c1"), answer=NO_METER)
        await at.send(attempt("d1", event="tokens"), answer=Outcome(kind="mapping", detail="m", refused=True))
        await at.send(attempt("e1", event="pages"), answer=UNANSWERED)
        await at.send(attempt("f1", event="pages"), answer=NO_KEY)
    told = [one.getMessage() for one in caplog.records if one.name == "meterkit.delivery"]
    assert told == [
        "intent a1 of customer 'a': refused",
        "intent b1 of customer 'b': refused",
        "usage of the event name api_requests waits: no such meter",
        "usage of the event name tokens is parked: m",
        "Stripe is not sent anything for now: no such key",
    ]


async def test_between_two_calls_the_pace_is_kept() -> None:
    async with desk() as at:
        sender = Sender(at.store, at.answers, calls_per_s=50, calls_at_once=9, timeout_s=10.0)
        began = monotonic()
        for _ in range(3):
            await sender.send(at.lease, [attempt("a1")], lambda: 0.0, alone=True)
        assert monotonic() - began >= 2 / 50
