"""Sends intents and says what becomes of each: paced, never twice at once for a customer and meter."""

from __future__ import annotations

import asyncio
import logging
from math import inf
from operator import itemgetter
from random import SystemRandom
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from meterkit.decisions.ambiguity import compare_in_ms, may_be_sent_again
from meterkit.delivery.delivery_outcome import CLOCKS_APART_S
from meterkit.outbox.intents import Move
from meterkit.outbox.sealer import REPORTED
from meterkit.stripe.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Sequence

    from meterkit.delivery.delivery_outcome import Outcome
    from meterkit.outbox.intents import Attempt, Sealed
    from meterkit.outbox.outbox import Outbox
    from meterkit.store.store import Store
    from meterkit.stripe.breaker import Admitted

_logger = logging.getLogger("meterkit.delivery")
_jitter = SystemRandom().uniform
_LEASE_MS: Final = 60_000
_RETRY_FIRST_MS: Final = 1_000
_SYSTEMIC_FIRST_MS: Final = 60_000
_RETRY_MAX_MS: Final = 600_000
# https://docs.stripe.com/api/v2/billing/meter-event-stream/create: 10,000 a second in live mode.
_EVENTS_PER_S: Final = 8_000
Elapsed: TypeAlias = "Callable[[], float]"
"""Tells how long ago something was, at least, in seconds."""
_LINES_MOST: Final = 1_000
Line: TypeAlias = tuple[str, str]
"""A customer and an event name."""


def stopwatch(clock: Callable[[], float]) -> Elapsed:
    """What tells the seconds since now: by the wall clock or the monotonic one, whichever says more.

    Too short a span would bill twice.

    The monotonic clock stands still while a machine is suspended; the wall clock may be set back.

    Args:
        clock: the wall clock, in seconds.
    """
    wall_s, monotonic_s = clock(), monotonic()
    return lambda: max(clock() - wall_s, monotonic() - monotonic_s)


class Transport(Protocol):
    """Delivers intents; safe to call concurrently within one event loop."""

    @property
    def most(self) -> int:
        """How many intents a call takes."""
        ...

    async def ready(self) -> Outcome | None:
        """Get what is needed first; why it is not there. Raises nothing but cancellation."""
        ...

    async def send(self, *intents: Sealed) -> Outcome:
        """Try once to deliver intents, all or none of them. Raises nothing but cancellation."""
        ...

    async def close(self) -> None:
        """Give back connections. Closing twice is harmless; what is sent afterwards is not done."""
        ...


def calls_of(
    attempts: Iterable[Attempt], *, most: int, apart: Container[Line] = ()
) -> list[list[list[Attempt]]]:
    """Calls that may be in flight beside each other, and those that follow each: of a customer and meter one.

    Args:
        attempts: what is to be sent.
        most: how many intents a call takes.
        apart: customers and meters that share no call with others.
    """
    lines: dict[Line, list[Attempt]] = {}
    for attempt in attempts:
        lines.setdefault(line_of(attempt.intent), []).append(attempt)
    beside: list[list[list[Attempt]]] = []
    shared: list[Attempt] = []  # The last call that further lines may join.
    for name, line in lines.items():
        if any(attempt.intent.value < 0 for attempt in line):
            # What takes units back goes by itself: streams are not documented to take it.
            beside.append([[attempt] for attempt in line])
        elif name in apart:
            beside.append([line[start : start + most] for start in range(0, len(line), most)])
        elif shared and len(shared) + len(line) <= most:
            shared += line
        else:
            beside.append([line[start : start + most] for start in range(0, len(line), most)])
            shared = beside[-1][0]
    return beside


class Lease:
    """A shard's lease, by this process's clocks.

    Args:
        outbox: whose lease it is.
        shard: what it is of.
        clock: the wall clock, in seconds.
    """

    def __init__(self, outbox: Outbox, shard: int, *, clock: Callable[[], float]) -> None:
        self.outbox = outbox
        self.shard = shard
        self._clock = clock
        self._asked: Elapsed = lambda: inf
        self._renewing = asyncio.Lock()

    def _is_held(self, span_s: float) -> bool:
        return self._asked() + span_s + 1 < _LEASE_MS / 1000

    async def outlives(self, span_s: float) -> bool:
        """Whether the lease is held for that long, taken or renewed if need be; not once it ran out."""
        if self._is_held(span_s):
            return True
        async with self._renewing:
            if self._is_held(span_s):
                return True
            if _LEASE_MS / 1000 <= self._asked() < inf:
                return (
                    False  # Another process may have held it meanwhile, and sent the intents leased under it.
                )
            asked = stopwatch(self._clock)
            if not await self.outbox.lease(self.shard, ttl_ms=_LEASE_MS):
                return False
            self._asked = asked
            return True


class Sender:
    """Sends intents, as fast as it may.

    Args:
        store: whose clock and plans file it goes by.
        transport: how an intent is sent.
        calls_per_s: at most so many calls to Stripe per second.
        calls_at_once: at most so many calls to Stripe in flight.
        timeout_s: how long the transport may take for one call.

    Attributes:
        breaker: whether anything is sent.
        stopping: set where nothing more is to be sent.
        suspects: lines that may be why Stripe does not answer.
    """

    def __init__(
        self, store: Store, transport: Transport, *, calls_per_s: float, calls_at_once: int, timeout_s: float
    ) -> None:
        # The first call of a process is alone: it shows whether the key and the clocks are right.
        self.breaker = Breaker(is_tried=False)
        self.stopping = asyncio.Event()
        self.suspects = SuspectLines()
        self._store = store
        self._transport = transport
        self._pause_s = 1 / calls_per_s
        self._next_call = 0.0
        self._calls = asyncio.Semaphore(calls_at_once)
        self._timeout_s = timeout_s
        self._meters: dict[str, Breaker] = {}
        self._probes: dict[str, asyncio.Lock] = {}

    def closed_meters(self) -> Collection[str]:
        """The event names that nothing is sent of for now."""
        now_ms = self._store.now_ms()
        return {event for event, breaker in self._meters.items() if breaker.admits(now_ms) == "none"}

    @property
    def most(self) -> int:
        """How many intents are sent in a call."""
        return self._transport.most

    async def send(
        self, lease: Lease, attempts: Sequence[Attempt], asked: Elapsed, *, alone: bool
    ) -> list[Move]:
        """Send intents in a call, unless that might count them twice.

        Args:
            lease: of their shard.
            attempts: the intents, leased.
            asked: since when they are leased.
            alone: whether it is the call that a breaker lets through to see.

        Returns:
            Their next states; those that are missing are not sent, as the lease is lost.
        """
        probing = [one for one in attempts if self._meter_admits(one.intent.event_name) == "one"]
        others = [one for one in attempts if one not in probing]
        moves = await self._send(lease, others, asked, alone=alone) if others else []
        for attempt in probing:
            event_name = attempt.intent.event_name
            async with self._probes.setdefault(event_name, asyncio.Lock()):
                # The one before has shown whether the others pass.
                if self._meter_admits(event_name) == "one":
                    moves += await self._send(lease, [attempt], asked, alone=alone)
                    continue
            moves += await self._send(lease, [attempt], asked, alone=alone)
        return moves

    async def _send(
        self, lease: Lease, attempts: Sequence[Attempt], asked: Elapsed, *, alone: bool
    ) -> list[Move]:
        moves: list[Move] = []
        async with self._calls:
            await self._pace(len(attempts))
            names = {one.intent.event_name for one in attempts}
            closed = {name for name in names if not self._may_send(name, alone=alone)}
            moves += [self._give_back(one) for one in attempts if one.intent.event_name in closed]
            attempts = [one for one in attempts if one.intent.event_name not in closed]
            outcome = await self._transport.ready() if attempts else None
            if outcome is None:
                if not (attempts and await lease.outlives(self._timeout_s)):
                    return moves
                passed_ms = int(asked() * 1000)
                ambiguous = [one for one in attempts if _is_ambiguous(one, passed_ms)]
                moves += [_park(one, passed_ms) for one in ambiguous]
                attempts = [one for one in attempts if one not in ambiguous]
                if not attempts:
                    return moves
                outcome = await self._transport.send(*(one.intent for one in attempts))
        if len(attempts) > 1 and outcome.is_of_contents:
            # One of them is to blame. Stripe has none, so that the others are sent without it.
            half = len(attempts) // 2
            for part in (attempts[:half], attempts[half:]):
                moves += await self._send(lease, part, asked, alone=alone)
            return moves
        is_clock_right = self._note(attempts, outcome)
        return moves + [self._next(one, outcome, is_clock_right=is_clock_right) for one in attempts]

    def _may_send(self, event_name: str, *, alone: bool) -> bool:
        if self.stopping.is_set():
            return False
        wanted = {"all", "one"} if alone else {"all"}
        return (
            self.breaker.admits(self._store.now_ms()) in wanted and self._meter_admits(event_name) != "none"
        )

    def _meter_admits(self, event_name: str) -> Admitted:
        meter = self._meters.get(event_name)
        return "all" if meter is None else meter.admits(self._store.now_ms())

    def _note(self, attempts: Sequence[Attempt], outcome: Outcome) -> bool:
        """What one answer says of all others. Returns whether Stripe's clock agrees with ours.

        An alert is sent once for a cause that concerns all or a meter, else for each intent.
        """
        sealed = attempts[0].intent
        now_ms, apart_s = self._store.now_ms(), 0.0
        systemic = {"first_ms": _SYSTEMIC_FIRST_MS, "most_ms": _RETRY_MAX_MS}
        if outcome.server_time_s is not None:
            apart_s = abs(outcome.server_time_s - self._store.clock())
        is_clock_right = apart_s <= CLOCKS_APART_S
        is_unanswered = outcome.kind == "unknown" or (outcome.kind == "not_done" and not outcome.answered)
        self.suspects.note(attempts, is_unanswered=is_unanswered)
        if outcome.scope == "account" or not is_clock_right:
            self.breaker.trip(now_ms, **systemic)
            if self.breaker.is_alert_due(now_ms):
                if is_clock_right:
                    _logger.error("Stripe is not sent anything for now: %s", outcome.detail)
                else:
                    apart = "this host's clock and Stripe's differ by %d s: delivery waits until they agree"
                    _logger.error(apart, apart_s)
        elif is_unanswered:
            self.breaker.failed(now_ms, first_ms=_RETRY_FIRST_MS, most_ms=_SYSTEMIC_FIRST_MS)
        elif outcome.scope == "meter":
            self.breaker.succeeded()
            meter = self._meters.setdefault(sealed.event_name, Breaker(is_tried=True))
            if outcome.kind == "no_meter":
                meter.trip(now_ms, **systemic)
            if meter.is_alert_due(now_ms):
                kept = "is parked" if outcome.step == "park" else "waits"
                _logger.error("usage of the event name %s %s: %s", sealed.event_name, kept, outcome.detail)
        else:
            self.breaker.succeeded()
            for attempt in attempts:
                self._meters.pop(attempt.intent.event_name, None)
            if outcome.alert:
                _report(sealed, f": {outcome.detail}")
        return is_clock_right

    def _next(self, attempt: Attempt, outcome: Outcome, *, is_clock_right: bool) -> Move:
        sealed = attempt.intent
        if outcome.delivered:
            return Move(intent=sealed, state="delivered", batch=outcome.batch)
        is_parked = outcome.step == "park" and (outcome.kind != "timestamp" or is_clock_right)
        # Stripe need not remember a certain refusal.
        untried = outcome.refused and not attempt.first_ms
        if is_parked:
            return Move(intent=sealed, state="parked", why=outcome.detail, untried=untried)
        if outcome.step == "dead" and untried:
            return Move(intent=sealed, state="dead", why=outcome.detail, untried=True)
        if outcome.step == "dead":
            # An earlier try was not answered: Stripe may have taken it then.
            why = f"{outcome.detail} (tried before: it is compared with Stripe's summary of its minute)"
            wait_ms = max(1, compare_in_ms(attempt.first_ms or attempt.now_ms, attempt.now_ms))
            return Move(intent=sealed, state="parked", why=why, delay_ms=wait_ms)
        wait_ms = _SYSTEMIC_FIRST_MS if outcome.alert else _RETRY_FIRST_MS
        wait_ms = min(_RETRY_MAX_MS, wait_ms * 2 ** min(attempt.attempts - 1, 10))
        return Move(
            intent=sealed,
            state="queued",
            delay_ms=int(wait_ms * _jitter(0.5, 1.0)),
            key=f"{sealed.identifier}-{token_hex(4)}" if outcome.new_key else "",
            untried=untried,
            why=outcome.detail,
            batch="" if outcome.refused else outcome.batch,
        )

    def _give_back(self, attempt: Attempt) -> Move:
        return Move(intent=attempt.intent, state="queued", untried=not attempt.first_ms)

    async def _pace(self, events: int) -> None:
        now = monotonic()
        at = max(now, self._next_call)
        self._next_call = at + max(self._pause_s, events / _EVENTS_PER_S)
        if at > now:
            await asyncio.sleep(at - now)


def _is_ambiguous(attempt: Attempt, passed_ms: int) -> bool:
    """Whether Stripe, which remembers an identifier for 24 hours, may have forgotten that it has this one.

    Args:
        attempt: the intent.
        passed_ms: since it was leased, at least.
    """
    return not may_be_sent_again(attempt.first_ms, attempt.now_ms + passed_ms)


def _park(attempt: Attempt, passed_ms: int) -> Move:
    """Park an intent until it is compared with Stripe's summary."""
    sealed, wait_ms = attempt.intent, compare_in_ms(attempt.first_ms, attempt.now_ms + passed_ms)
    why = "first tried more than 23 hours ago: it is compared with Stripe's summary of its minute"
    _logger.warning(
        "intent %s of customer %r is parked: %s", sealed.identifier, sealed.customer, why, extra=REPORTED
    )
    return Move(intent=sealed, state="parked", why=why, delay_ms=max(1, wait_ms))


def _report(sealed: Sealed, what: str) -> None:
    """Tell a person what became of an intent."""
    _logger.error("intent %s of customer %r%s", sealed.identifier, sealed.customer, what, extra=REPORTED)


def line_of(sealed: Sealed) -> Line:
    """Customer and event name of an intent."""
    return sealed.customer, sealed.event_name


class SuspectLines:
    """Lines that may be why Stripe does not answer, with the attempts of their most tried intent.

    A suspect line shares no call and is sent after all others; the least tried is first. Intents keep
    their attempts, so a new process reads its suspects from the store, once per shard.
    """

    def __init__(self) -> None:
        self._attempts: dict[Line, int] = {}
        self._shards_read: set[int] = set()

    def __contains__(self, line: object) -> bool:
        return line in self._attempts

    def attempts_of(self, sealed: Sealed) -> int:
        """Attempts of the intent's line; 0 if it is not suspect."""
        return self._attempts.get(line_of(sealed), 0)

    async def read(self, outbox: Outbox, shard: int) -> None:
        """Add the lines of a shard's intents that Stripe may have; does nothing the second time.

        Raises:
            StoreError: the store does not answer.
        """
        if shard in self._shards_read:
            return
        for line, attempts in (await outbox.unanswered(shard)).items():
            self._add(line, attempts)
        self._shards_read.add(shard)

    def note(self, attempts: Iterable[Attempt], *, is_unanswered: bool) -> None:
        """Add the lines of a call that was not answered; remove those of one that was."""
        for attempt in attempts:
            if is_unanswered:
                self._add(line_of(attempt.intent), attempt.attempts)
            else:
                self._attempts.pop(line_of(attempt.intent), None)

    def _add(self, line: Line, attempts: int) -> None:
        if line in self._attempts or len(self._attempts) < _LINES_MOST:
            self._attempts[line] = max(attempts, self._attempts.get(line, 0))

    def attempts_by_shard(self, shard_of: Callable[[str], int]) -> dict[int, int]:
        """Shards that have suspect lines, with the attempts of the least tried one, in this order."""
        least: dict[int, int] = {}
        for (customer, _), attempts in self._attempts.items():
            shard = shard_of(customer)
            least[shard] = min(attempts, least.get(shard, attempts))
        return dict(sorted(least.items(), key=itemgetter(1)))
