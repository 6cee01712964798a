"""Paced sender of intents: decides the next state of each, and never sends two of one line at once.

A line is a customer and an event name. Circuit breakers stop delivery for the account or for one meter.

Intents whose lease ran out are not sent in that pass: another process may have leased one, sent it and died.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from operator import itemgetter
from random import SystemRandom
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from meterkit.delivery.delivery_outcome import CLOCKS_APART_S, log_outcome, log_parked
from meterkit.outbox.intents import RESEND_MAX_MS, IntentMove, can_resend, compare_in_ms
from meterkit.stripe.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Sequence

    from meterkit.delivery.delivery_outcome import DeliveryOutcome
    from meterkit.outbox.intents import SealedIntent, SendAttempt
    from meterkit.outbox.outbox import Outbox
    from meterkit.store.store import Store
    from meterkit.stripe.circuit_breaker import Admitted

_logger = logging.getLogger("meterkit.delivery")
_jitter = SystemRandom().uniform
_LEASE_MS: Final = 60_000
_RETRY_FIRST_MS: Final = 1_000
_SYSTEMIC_FIRST_MS: Final = 60_000
_RETRY_MAX_MS: Final = 600_000
# https://docs.stripe.com/api/v2/billing/meter-event-stream/create: 10,000 a second in live mode.
_EVENTS_PER_S: Final = 8_000
Elapsed: TypeAlias = "Callable[[], float]"
"""Reads the seconds since an instant, or more."""
_LINES_MOST: Final = 1_000
Line: TypeAlias = tuple[str, str]
"""A customer and an event name."""


def stopwatch(clock: Callable[[], float]) -> Elapsed:
    """Measure the seconds since now by the wall clock or the monotonic clock, whichever says more.

    Too short a span would bill twice. The monotonic clock stands still while a machine is suspended; the
    wall clock may be set back.

    Args:
        clock: the wall clock, in seconds.
    """
    wall_s, monotonic_s = clock(), monotonic()
    return lambda: max(clock() - wall_s, monotonic() - monotonic_s)


class Transport(Protocol):
    """Delivers intents; safe to call concurrently within one event loop."""

    @property
    def events_per_call(self) -> int:
        """Largest number of intents in a call."""
        ...

    async def ready(self) -> DeliveryOutcome | None:
        """Prepare to send; return an outcome if that fails. Raises nothing but cancellation."""
        ...

    async def send(self, *intents: SealedIntent) -> DeliveryOutcome:
        """Try to deliver intents once, all or none. Raises nothing but cancellation."""
        ...

    async def close(self) -> None:
        """Close all connections. Idempotent; a later send is refused."""
        ...


def group_calls(
    attempts: Iterable[SendAttempt], *, events_per_call: int, apart: Container[Line] = ()
) -> list[list[list[SendAttempt]]]:
    """Group attempts into calls. Outer lists may be sent at once; the calls of one list follow each other.

    Args:
        attempts: the intents to send.
        events_per_call: largest number of intents in a call.
        apart: lines that share no call with others.
    """

    def split(line: list[SendAttempt]) -> list[list[SendAttempt]]:
        return [line[start : start + events_per_call] for start in range(0, len(line), events_per_call)]

    lines: dict[Line, list[SendAttempt]] = {}
    for attempt in attempts:
        lines.setdefault(line_of(attempt.intent), []).append(attempt)
    sequences: list[list[list[SendAttempt]]] = []
    shared: list[SendAttempt] = []  # The last call that further lines may join.
    for name, line in lines.items():
        if any(attempt.intent.value < 0 for attempt in line):
            # Negative events go one by one: streams are not documented to take them.
            sequences.append([[attempt] for attempt in line])
        elif name in apart:
            sequences.append(split(line))
        elif shared and len(shared) + len(line) <= events_per_call:
            shared += line
        else:
            sequences.append(split(line))
            shared = sequences[-1][0]
    return sequences


class ShardLease:
    """Lease of a shard, with its expiry by this process's clocks.

    Args:
        outbox: takes and renews the lease.
        shard: the leased shard.
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
        """Check that the lease is held for that long; take or renew it if needed. False once it ran out."""
        if self._is_held(span_s):
            return True
        async with self._renewing:
            if self._is_held(span_s):
                return True
            if _LEASE_MS / 1000 <= self._asked() < inf:
                # Another process may have held it meanwhile, and sent the intents leased under it.
                return False
            asked = stopwatch(self._clock)
            if not await self.outbox.lease(self.shard, ttl_ms=_LEASE_MS):
                return False
            self._asked = asked
            return True


class IntentSender:
    """Sends intents at the allowed rate.

    Args:
        store: gives the clock.
        transport: delivers the intents of a call.
        calls_per_s: at most so many calls to Stripe per second.
        calls_at_once: at most so many calls to Stripe in flight.
        timeout_s: how long the transport may take for one call.

    Attributes:
        breaker: circuit breaker of the account.
        stopping: set when nothing more is to be sent.
        suspects: lines that may be why Stripe does not answer.
        refusals: Stripe's last responses that only an operator can change, by event name; empty name: the
            account. Another response for the name, or the start of a flush, removes one.
    """

    def __init__(
        self, store: Store, transport: Transport, *, calls_per_s: float, calls_at_once: int, timeout_s: float
    ) -> None:
        # The first call of a process is sent alone: it shows whether the key and the clocks are right.
        self.breaker = CircuitBreaker(is_tried=False)
        self.stopping = asyncio.Event()
        self.suspects = SuspectLines()
        self.refusals: dict[str, str] = {}
        self._store = store
        self._transport = transport
        self._pause_s = 1 / calls_per_s
        self._next_call = 0.0
        self._calls = asyncio.Semaphore(calls_at_once)
        self._timeout_s = timeout_s
        self._meters: dict[str, CircuitBreaker] = {}
        self._probes: dict[str, asyncio.Lock] = {}

    def closed_meters(self) -> Collection[str]:
        """The event names whose circuit breaker is open."""
        now_ms = self._store.now_ms()
        return {event for event, breaker in self._meters.items() if breaker.admits(now_ms) == "none"}

    @property
    def events_per_call(self) -> int:
        """Largest number of intents in a call."""
        return self._transport.events_per_call

    async def send(
        self, lease: ShardLease, attempts: Sequence[SendAttempt], asked: Elapsed, *, alone: bool
    ) -> list[IntentMove]:
        """Send intents in a call, unless that might count them twice.

        Args:
            lease: of their shard.
            attempts: the leased intents.
            asked: the time since they were leased.
            alone: whether it is the probe of an open breaker.

        Returns:
            Their next states. Intents without one were not sent, because the lease was lost.
        """
        probing = [one for one in attempts if self._meter_admits(one.intent.event_name) == "one"]
        others = [one for one in attempts if one not in probing]
        moves = await self._send_call(lease, others, asked, alone=alone) if others else []
        for attempt in probing:
            event_name = attempt.intent.event_name
            async with self._probes.setdefault(event_name, asyncio.Lock()):
                # The previous probe may have closed the breaker, or not.
                if self._meter_admits(event_name) == "one":
                    moves += await self._send_call(lease, [attempt], asked, alone=alone)
                    continue
            moves += await self._send_call(lease, [attempt], asked, alone=alone)
        return moves

    async def _send_call(
        self, lease: ShardLease, attempts: Sequence[SendAttempt], asked: Elapsed, *, alone: bool
    ) -> list[IntentMove]:
        moves: list[IntentMove] = []
        async with self._calls:
            await self._pace(len(attempts))
            names = {one.intent.event_name for one in attempts}
            closed = {name for name in names if not self._may_send(name, alone=alone)}
            moves += [self._return_unsent(one) for one in attempts if one.intent.event_name in closed]
            attempts = [one for one in attempts if one.intent.event_name not in closed]
            outcome = await self._transport.ready() if attempts else None
            if outcome is None:
                if not (attempts and await lease.outlives(self._timeout_s)):
                    return moves
                passed_ms = int(asked() * 1000)
                ambiguous = [one for one in attempts if _is_ambiguous(one, passed_ms)]
                moves += [_park_ambiguous(one, passed_ms) for one in ambiguous]
                attempts = [one for one in attempts if one not in ambiguous]
                if not attempts:
                    return moves
                outcome = await self._transport.send(*(one.intent for one in attempts))
        if len(attempts) > 1 and outcome.is_of_contents:
            return moves + await self._send_halves(lease, attempts, asked, alone=alone)
        is_clock_right = self._record_outcome(attempts, outcome)
        return moves + [self._next_move(one, outcome, is_clock_right=is_clock_right) for one in attempts]

    async def _send_halves(
        self, lease: ShardLease, attempts: Sequence[SendAttempt], asked: Elapsed, *, alone: bool
    ) -> list[IntentMove]:
        """Bisect a call that Stripe refused whole because of one of its events."""
        half = len(attempts) // 2
        first = await self._send_call(lease, attempts[:half], asked, alone=alone)
        return first + await self._send_call(lease, attempts[half:], asked, alone=alone)

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

    def _record_outcome(self, attempts: Sequence[SendAttempt], outcome: DeliveryOutcome) -> bool:
        """Update breakers and suspects, and log alerts; whether Stripe's clock agrees with ours.

        A cause that concerns the account or a meter is logged once, other causes for each intent.
        """
        sealed = attempts[0].intent
        now_ms, apart_s = self._store.now_ms(), 0.0
        systemic = {"first_ms": _SYSTEMIC_FIRST_MS, "most_ms": _RETRY_MAX_MS}
        if outcome.server_time_s is not None:
            apart_s = abs(outcome.server_time_s - self._store.clock())
        is_clock_right = apart_s <= CLOCKS_APART_S
        is_unanswered = outcome.kind == "unknown" or (outcome.kind == "not_done" and not outcome.answered)
        self.suspects.note(attempts, is_unanswered=is_unanswered)
        self._record_refusal({one.intent.event_name for one in attempts}, outcome)
        if outcome.scope == "account" or not is_clock_right:
            self.breaker.trip(now_ms, **systemic)
            if self.breaker.is_alert_due(now_ms):
                if is_clock_right:
                    _logger.error("delivery to Stripe is paused: %s", outcome.detail)
                else:
                    apart = "the store's clock and Stripe's differ by %d s: delivery waits until they agree"
                    _logger.error(apart, apart_s)
        elif outcome.limited_s is not None:
            self._pause_account(outcome.limited_s, outcome.detail)
        elif is_unanswered:
            self.breaker.failed(now_ms, first_ms=_RETRY_FIRST_MS, most_ms=_SYSTEMIC_FIRST_MS)
        elif outcome.scope == "meter":
            self.breaker.succeeded()
            meter = self._meters.setdefault(sealed.event_name, CircuitBreaker(is_tried=True))
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
                log_outcome(sealed.identifier, sealed.customer, f": {outcome.detail}")
        return is_clock_right

    def _pause_account(self, limited_s: int, detail: str) -> None:
        """Pause delivery because Stripe limits the account's calls: each would get the same response."""
        now_ms, first_ms = self._store.now_ms(), max(1000 * limited_s, _RETRY_FIRST_MS)
        self.breaker.trip(now_ms, first_ms=first_ms, most_ms=max(first_ms, _SYSTEMIC_FIRST_MS))
        if self.breaker.is_alert_due(now_ms):
            _logger.warning("delivery to Stripe is paused, and goes on by itself: %s", detail)

    def _record_refusal(self, event_names: Collection[str], outcome: DeliveryOutcome) -> None:
        """Replace the refusals of the account and of these event names by this outcome."""
        for name in ("", *event_names):
            self.refusals.pop(name, None)
        if outcome.is_blocked:
            names = [""] if outcome.scope == "account" else event_names
            self.refusals.update(dict.fromkeys(names, outcome.detail))

    def _next_move(
        self, attempt: SendAttempt, outcome: DeliveryOutcome, *, is_clock_right: bool
    ) -> IntentMove:
        sealed = attempt.intent
        if outcome.delivered:
            return IntentMove(intent=sealed, state="delivered", batch=outcome.batch)
        is_parked = outcome.step == "park" and (outcome.kind != "timestamp" or is_clock_right)
        # A certain refusal counts as if the intent had never been tried.
        untried = outcome.refused and not attempt.first_ms
        if is_parked:
            return IntentMove(intent=sealed, state="parked", why=outcome.detail, untried=untried)
        if outcome.step == "dead" and untried:
            return IntentMove(intent=sealed, state="dead", why=outcome.detail, untried=True)
        if outcome.step == "dead":
            # An earlier try was not answered: Stripe may have taken it then.
            why = f"{outcome.detail} (tried before: it is compared with Stripe's summary of its minute)"
            wait_ms = max(1, compare_in_ms(attempt.first_ms or attempt.now_ms, attempt.now_ms))
            return IntentMove(intent=sealed, state="parked", why=why, delay_ms=wait_ms)
        wait_ms = _SYSTEMIC_FIRST_MS if outcome.alert else _RETRY_FIRST_MS
        wait_ms = min(_RETRY_MAX_MS, wait_ms * 2 ** min(attempt.attempts - 1, 10))
        return IntentMove(
            intent=sealed,
            state="queued",
            delay_ms=int(wait_ms * _jitter(0.5, 1.0)),
            key=f"{sealed.identifier}-{token_hex(4)}" if outcome.new_key else "",
            untried=untried,
            why=outcome.detail,
            batch="" if outcome.refused else outcome.batch,
        )

    def _return_unsent(self, attempt: SendAttempt) -> IntentMove:
        return IntentMove(intent=attempt.intent, state="queued", untried=not attempt.first_ms)

    async def _pace(self, events: int) -> None:
        now = monotonic()
        at = max(now, self._next_call)
        self._next_call = at + max(self._pause_s, events / _EVENTS_PER_S)
        if at > now:
            await asyncio.sleep(at - now)


def _is_ambiguous(attempt: SendAttempt, passed_ms: int) -> bool:
    """Whether Stripe may have forgotten an identifier that it has: it remembers one for 24 hours."""
    return not can_resend(attempt.first_ms, attempt.now_ms + passed_ms)


def _park_ambiguous(attempt: SendAttempt, passed_ms: int) -> IntentMove:
    """Park an intent until it is compared with Stripe's summary."""
    sealed, wait_ms = attempt.intent, compare_in_ms(attempt.first_ms, attempt.now_ms + passed_ms)
    hours = RESEND_MAX_MS // 3_600_000
    why = f"first tried more than {hours} hours ago: it is compared with Stripe's summary of its minute"
    log_parked(sealed.identifier, sealed.customer, why)
    return IntentMove(intent=sealed, state="parked", why=why, delay_ms=max(1, wait_ms))


def line_of(sealed: SealedIntent) -> Line:
    """Customer and event name of an intent."""
    return sealed.customer, sealed.event_name


class SuspectLines:
    """Lines that may be the reason why Stripe does not answer, with the attempts of their most tried intent.

    A suspect line shares no call and is sent after all others; the least tried comes first. The store has
    the attempts of each intent, so a new process reads its suspects from there, once for each shard.
    """

    def __init__(self) -> None:
        self._attempts: dict[Line, int] = {}
        self._shards_read: set[int] = set()

    def __contains__(self, line: object) -> bool:
        return line in self._attempts

    def attempts_of(self, sealed: SealedIntent) -> int:
        """Read the attempts of the intent's line; 0 if it is not suspect."""
        return self._attempts.get(line_of(sealed), 0)

    async def read(self, outbox: Outbox, shard: int) -> None:
        """Add the lines of a shard's intents whose last outcome is unknown; only once for each shard.

        Raises:
            StoreError: the store does not answer.
        """
        if shard in self._shards_read:
            return
        for line, attempts in (await outbox.unanswered(shard)).items():
            self._add_line(line, attempts)
        self._shards_read.add(shard)

    def note(self, attempts: Iterable[SendAttempt], *, is_unanswered: bool) -> None:
        """Add the lines of an unanswered call; remove the lines of an answered one."""
        for attempt in attempts:
            if is_unanswered:
                self._add_line(line_of(attempt.intent), attempt.attempts)
            else:
                self._attempts.pop(line_of(attempt.intent), None)

    def _add_line(self, line: Line, attempts: int) -> None:
        if line in self._attempts or len(self._attempts) < _LINES_MOST:
            self._attempts[line] = max(attempts, self._attempts.get(line, 0))

    def attempts_by_shard(self, shard_of: Callable[[str], int]) -> dict[int, int]:
        """Shards with suspect lines and the attempts of their least tried line, fewest first."""
        least: dict[int, int] = {}
        for (customer, _), attempts in self._attempts.items():
            shard = shard_of(customer)
            least[shard] = min(attempts, least.get(shard, attempts))
        return dict(sorted(least.items(), key=itemgetter(1)))
