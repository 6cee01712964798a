"""The store: decisions and settlements, from any event loop, over one lane each."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from meterkit.catalog.meters import check_feature
from meterkit.decisions.customer_state import refusal_for_feature
from meterkit.decisions.keys import Keys
from meterkit.decisions.packed import EventMark
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import StoreError
from meterkit.log_throttle import MINUTE_S, Throttle
from meterkit.metric_tallies import Tallies
from meterkit.redis import scripts
from meterkit.redis.connection import ReplyError
from meterkit.redis.event_loops import EventLoops
from meterkit.redis.server import refuse_past_clock
from meterkit.store import replies
from meterkit.store.allotment import Allotments
from meterkit.store.compiled_catalog import CUSTOMERS_KEPT
from meterkit.store.customer_usage import UsageReply, find_gone_tokens, funds_terms, read_usage_reply
from meterkit.store.daily_counts import DegradedMinutes, UnpricedCalls
from meterkit.store.event_names import read_former_meters
from meterkit.store.fallback_decider import Fallback
from meterkit.store.prepared_decisions import Prepare, prepare_asking, read_decision
from meterkit.store.rate_usage import read_rates
from meterkit.store.request_idempotency import MarkedDecision
from meterkit.store.settlement import Settlement, undo_decision
from meterkit.store.settlement_parts import HeldQuantities, UsedQuantities, mark_used_in_slot
from meterkit.store.settlement_spool import NO_SPOOLS, EventLoopSpool, OrphanedSpools
from meterkit.store.unreadable_data import UnreadableDataError, damage_of, is_of_the_store, refuse_unreadable
from meterkit.store.views import CustomerCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from meterkit.catalog import Catalog
    from meterkit.decisions.decision import Decision
    from meterkit.decisions.limit_policies import Demand
    from meterkit.redis.admin import Admin
    from meterkit.redis.lane import Lane
    from meterkit.redis.scripts import Script
    from meterkit.redis.url import Address
    from meterkit.settings import Settings
    from meterkit.store.customer_usage import CustomerUsage
    from meterkit.store.rate_usage import RateUsage
    from meterkit.store.views import CustomerView, PreparedDecision

__all__ = ["Prepare", "Store"]

_logger = logging.getLogger("meterkit.store")

_SPOOL_WAIT_S: Final = 1.0
_NOTHING: Final[Mapping[str, int]] = {}
_USAGE_KEYS: Final = 5
"""Keys of ``read_usage``."""
_TRIES: Final = 8
_NAMED_MAX: Final = 5
# Of the error CROSSSLOT: redis-py leaves out the code.
_OTHER_SLOT: Final = "same slot"


class EndableJob(Protocol):
    """Hold of a provider's job; see :class:`meterkit.store.provider_jobs.JobHold`."""

    def end(self) -> None:
        """Release the hold."""


class JobHolds:
    """Holds and owners of provider jobs that this process knows, by the provider's ids.

    Attributes:
        holds: holds of unfinished jobs.
        owners: customers who began the latest jobs: they are found while the store is down.
        logged_ms: time of the last log line about a job that does not end.
    """

    __slots__ = ("holds", "logged_ms", "owners")

    def __init__(self) -> None:
        self.holds: dict[str, EndableJob] = {}
        self.owners: dict[str, CustomerView] = {}
        self.logged_ms: int | None = None


class Store:
    """Facade over Redis: decide, settle, read usage. Lanes are started, stopped and found by :attr:`loops`.

    Args:
        address: of Redis; ``memory`` for the store within this process.
        catalog: the plans file.
        prefix: prefix of every key.
        shards: number of shards; fixed once a store is in use.
        timeout_s, start_timeout_s: longest wait of a request for the store, and of the start.
        seal_delay_ms: delay before pending usage is sealed.
        deliver_without_persistence: whether to deliver from a store that loses its data at a restart.
        is_audited: whether recorded usage is written to the audit log.
        customers_kept: number of customers in a process's cache.
        spool_dir: directory of spools, for usage while the store is down; None: in memory.
        clock: seconds since the epoch. One other than the system's also replaces the server's: for tests.
    """

    def __init__(
        self,
        address: Address,
        catalog: Catalog,
        *,
        prefix: str = "mk",
        shards: int = 128,
        timeout_s: float = 0.25,
        start_timeout_s: float = 5.0,
        seal_delay_ms: int = 300_000,
        deliver_without_persistence: bool = False,
        is_audited: bool = False,
        customers_kept: int = CUSTOMERS_KEPT,
        spool_dir: Path | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self.address = address
        self.keys = Keys(prefix, shards)
        self.deliver_without_persistence = deliver_without_persistence
        self.spool_dir = spool_dir if address.kind != "memory" else None
        self._counts_each = address.kind == "cluster"
        self.is_audited = is_audited
        self._customers_kept = customers_kept
        if clock is not time and address.kind != "memory":
            clock = refuse_past_clock(clock, str(address))
        self.host_clock = clock
        self._throttle = Throttle(MINUTE_S)
        self._timeout_s = timeout_s
        self._seal_delay_ms = seal_delay_ms
        self.scripts = {name: self._load_script(name) for name in scripts.NAMES}
        if is_audited:
            self.scripts["settle audited"] = self._load_script("settle", is_audited=True)
        self.loops = loops = EventLoops(
            address,
            self.keys,
            self.scripts,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            clock=clock,
        )
        self.clock = loops.store_clock
        if self.spool_dir is not None:
            loops.new_spool = partial(self._new_spool, self.spool_dir)
        loops.new_allotments = partial(Allotments, clock=clock)
        self.job_holds = JobHolds()
        self.lanes = loops.lanes
        self.start, self.lane, self.stop, self.admin = loops.start, loops.lane, loops.stop, loops.admin
        self.on_notice: Callable[[int], None] = lambda _shard: None
        self.on_unknown_plan: Callable[[], None] = lambda: None
        self.fallback = Fallback(self.now_ms)
        self.degraded = DegradedMinutes(self.keys, self.admin, self.now_ms)
        self.unpriced = UnpricedCalls(self.keys, self.admin, self.now_ms)
        self.tallies: Tallies | None = None
        self.task_failures: Counter[str] = Counter()
        self.mark_span: Callable[[str | None, str | None, bool], None] | None = None
        self.use(catalog)

    @classmethod
    def of(cls, address: Address, catalog: Catalog, settings: Settings, clock: Callable[[], float]) -> Self:
        """Create the store by settings."""
        return cls(
            address,
            catalog,
            prefix=settings.key_prefix,
            shards=settings.shards,
            timeout_s=settings.store_timeout,
            start_timeout_s=settings.start_timeout,
            seal_delay_ms=int(settings.flush_interval * 1000),
            # Test keys bill no customer: trying meterkit on any server must be easy.
            deliver_without_persistence=settings.deliver_without_persistence or not settings.live,
            is_audited=settings.audit_url is not None,
            customers_kept=settings.customers_kept,
            spool_dir=settings.spool_dir,
            clock=clock,
        )

    def use(self, catalog: Catalog) -> None:
        """Use this catalog from now on."""
        former: CustomerCache | None = getattr(self, "cache", None)
        cache = CustomerCache(
            catalog,
            keys=self.keys,
            decide=self.scripts["decide"],
            settle=self.scripts["settle"],
            seal_delay_ms=self._seal_delay_ms,
            now_ms=self.now_ms,
            on_unclaimed=self._undo_unclaimed,
            on_notice=lambda shard: self.on_notice(shard),  # noqa: PLW0108 - it may be replaced later
            on_unknown_plan=lambda: self.on_unknown_plan(),  # noqa: PLW0108 - the same
            settle_audited=self.scripts.get("settle audited"),
            customers_kept=self._customers_kept,
            allot=self.scripts["allot_requests"],
            former_routes=None if former is None else former.routes,
        )
        cache.tallies, cache.unpriced = self.tallies, self.unpriced
        if former is not None:
            cache.inherit(former)
        self.cache = cache

    @property
    def catalog(self) -> Catalog:
        """The catalog: plans, meters, routes."""
        return self.cache.catalog

    @property
    def is_off(self) -> bool:
        """Whether nothing is decided or counted."""
        return self.cache.catalog.enforcement == "off"

    def tally(self) -> Tallies:
        """Start counting decisions for metrics; return the counts."""
        if self.tallies is None:
            self.tallies = self.loops.tallies = self.cache.tallies = Tallies()
            for lane in self.lanes.values():
                lane.set_tallies(self.tallies)
        return self.tallies

    def now_ms(self) -> int:
        """The store's clock, as this process knows it."""
        return int(self.clock() * 1000)

    async def clock_ms(self, shard: int) -> int:
        """Ask a shard's server for its clock.

        Raises:
            StoreError: the store does not answer.
        """
        nothing = [self.keys.shard(shard, "clock")] * _USAGE_KEYS  # There is no such key.
        found: list[Any] = await (await self.admin()).run(self.scripts["read_usage"], nothing)
        return UsageReply(*found).now_ms

    async def ask(self, command: str, *arguments: Any, **options: Any) -> Any:
        """Run a command: the name of a method of redis-py, and its arguments.

        Raises:
            StoreError: the store does not answer, or answers with an error.
        """
        admin = await self.admin()
        return await admin.ask(getattr(admin.client, command)(*arguments, **options))

    async def decide(
        self, view: CustomerView, prepare: Prepare, *, mode: Literal["d", "c"] = "d"
    ) -> tuple[PreparedDecision, Any]:
        """Ask for a decision; see :meth:`conclude`."""
        lane = await self.lane()
        decision = prepare(view.cache.newest(view), mode)
        return await self.conclude(lane, decision, prepare, await lane.ask(decision), mode=mode)

    async def conclude(
        self,
        lane: Lane,
        decision: PreparedDecision,
        prepare: Prepare,
        reply: Any,
        *,
        mode: Literal["d", "c"] = "d",
    ) -> tuple[PreparedDecision, Any]:
        """Ask again until the reply is final: with the newest state, and with lost scripts.

        Args:
            lane: of the running event loop.
            decision: the first decision.
            prepare: prepares it again by another view.
            reply: its reply.
            mode: ``c`` checks only.

        Returns:
            The last decision, and its reply: allowed, refused, or a refusal's rev confirmed.

        Raises:
            StoreError: the store cannot decide.
        """
        stale = 0
        while True:
            if isinstance(reply, ReplyError):
                reply = await lane.retry_call(decision, reply)
            if reply[0] == replies.REPEAT and isinstance(decision, MarkedDecision):
                return decision.as_repeat(), [replies.ALLOWED, *reply[1:]]
            if reply[0] != replies.STALE:
                return decision, reply
            view = decision.view.cache.learn(decision.view, reply)
            stale += 1
            decision = prepare(view, "f" if stale > 1 and mode == "d" else mode)
            if stale > 1 and decision.refusal is not None:
                return decision, [replies.REFUSED, reply[1]]
            reply = await lane.ask(decision)

    async def check(self, view: CustomerView, demands: Mapping[str, Demand]) -> Decision:
        """Check whether demands would be allowed now, without counting."""
        if self.is_off:
            return view.undecided()
        return read_decision(*await self.decide(view, _prepare_demands(demands), mode="c"))

    async def allows(self, view: CustomerView, feature: str) -> bool:
        """Whether the customer has a feature by the newest state; true if limits are not enforced."""
        check_feature(feature, self.catalog.features)
        if self.catalog.enforcement != "on":
            return True
        decision, _ = await self.decide(view, _prepare_demands({}), mode="c")
        return refusal_for_feature(view.customer, decision.view.effective, feature) is None

    async def consume(self, view: CustomerView, demands: Mapping[str, Demand]) -> Decision:
        """Count now, or be refused; returns when the usage is recorded."""
        if self.is_off:
            return view.undecided()
        decision, reply = await self.decide(view, _prepare_demands(demands))
        found = read_decision(decision, reply)
        if found.allowed and decision.program.settles:
            slot = reply[1] // HOLD_SLOT_MS
            held, used = HeldQuantities.of(decision, slot), UsedQuantities(recorded=decision.recorded)
            again = mark_used_in_slot(decision, slot)
            await self.settle_acknowledged(
                [Settlement(decision.view, held=held, used=used, keeps_shape=again)]
            )
        return found

    async def record(
        self,
        view: CustomerView,
        used: UsedQuantities,
        *,
        event_id: str | None,
        job_id: str | None = None,
        compared: Mapping[str, int] = _NOTHING,
        occurred_ms: int | None = None,
        asks_revenue: bool = False,
    ) -> Fraction | None:
        """Count after the fact, never denied; returns when the usage is recorded, or spooled.

        The id of a provider's job counts once in all; the app's event id counts once for each meter, with the
        same quantities and the same ``compared`` ones, which are of no meter.

        Returns:
            The revenue in micro-units; None: not asked, or no reply yet.

        Raises:
            MeterkitError: the event id has counted another quantity.
        """
        if self.is_off:
            return None
        event, counted_id = None, event_id if job_id is None else job_id
        given = {**compared, **used.given()} if job_id is None else {}
        # An id counts once for each meter: where nothing was used it is not used either.
        if counted_id is not None and (given or job_id is not None):
            key = self.keys.event(view.shard, view.customer, counted_id)
            event = EventMark(key, event_id or "", given)
        settlement = Settlement(
            view, used=used, event=event, occurred_ms=occurred_ms, asks_revenue=asks_revenue
        )
        if (await self.lane()).is_open:
            self.fallback.record(view, used.recorded)
        await self.settle_acknowledged([settlement])
        return settlement.revenue

    async def usage(self, customer: str, *, at_ms: int | None = None) -> CustomerUsage:
        """Usage of a customer with a valid id, in this period or in that of an instant.

        Raises:
            StoreError: the store does not answer.
            UnreadableDataError: what is stored of the customer cannot be read.
        """
        return (await self.usage_of_many([customer], at_ms=at_ms))[0]

    async def usage_of_many(
        self, customers: Sequence[str], *, at_ms: int | None = None, former: bool = False
    ) -> Sequence[CustomerUsage]:
        """Usage of customers, now or in the period of an instant; ``former``: of all meters ever.

        Raises:
            StoreError: the store does not answer.
            UnreadableDataError: what is stored of a customer cannot be read.
        """
        replies = await self._read_usage(customers)
        return await self._usage_in_replies(customers, replies, at_ms=at_ms, former=former)

    async def usage_and_rates_of_many(
        self, customers: Sequence[str]
    ) -> Sequence[tuple[CustomerUsage, Sequence[RateUsage]]]:
        """Usage of customers in this period, and of their rates; raises as :meth:`usage_of_many` does."""
        replies, catalog = await self._read_usage(customers), self.catalog
        usage = await self._usage_in_replies(customers, replies)
        return [(one, read_rates(catalog, reply)) for one, reply in zip(usage, replies, strict=True)]

    async def _usage_in_replies(
        self,
        customers: Sequence[str],
        replies: Sequence[UsageReply],
        *,
        at_ms: int | None = None,
        former: bool = False,
    ) -> Sequence[CustomerUsage]:
        catalog = self.catalog
        tokens = list[set[str]]()
        for customer, reply in zip(customers, replies, strict=True):
            with refuse_unreadable("usage", customer):
                tokens.append(find_gone_tokens(catalog, reply))
        gone = await read_former_meters(tokens, await self.admin(), self.keys, catalog, former=former)
        found: list[CustomerUsage] = []
        for customer, reply, names in zip(customers, replies, gone, strict=True):
            with refuse_unreadable("usage", customer):
                found.append(read_usage_reply(customer, catalog, reply, names, at_ms=at_ms))
        return found

    async def rates(self, customer: str) -> Sequence[RateUsage]:
        """Usage of the rates of a customer with a valid id."""
        (reply,) = await self._read_usage([customer])
        with refuse_unreadable("usage", customer):
            return read_rates(self.catalog, reply)

    async def read_grants(self, customer: str) -> UsageReply:
        """Read the grants of a customer with a valid id, and their ledger; raises as :meth:`usage` does."""
        return (await self._read_usage([customer], "grants"))[0]

    async def _read_usage(self, customers: Sequence[str], what: str = "usage") -> Sequence[UsageReply]:
        """Read all of customers; then again, with what their grants come to by the terms read before."""
        admin, script, catalog = await self.admin(), self.scripts["read_usage"], self.catalog
        keys = [
            [one.counters, one.state, one.totals, one.grants, one.levels, one.ledger]
            for one in map(self.keys.customer, customers)
        ]
        replies = [UsageReply(*one) for one in await admin.run_many(script, keys)]
        for _ in range(_TRIES):
            asked: dict[int, Sequence[str | int]] = {}
            for nth, (customer, reply) in enumerate(zip(customers, replies, strict=True)):
                with refuse_unreadable(what, customer):
                    if not reply.funds and (terms := funds_terms(catalog, reply)) is not None:
                        asked[nth] = terms
            if not asked:
                return replies
            try:
                found = await admin.run_many(script, [keys[nth] for nth in asked], [*asked.values()])
            except StoreError as error:
                if is_of_the_store(error):
                    raise
                named = ", ".join(repr(customers[nth]) for nth in [*asked][:_NAMED_MAX])
                raise UnreadableDataError(
                    f"the {what} of customer {named} cannot be read: {error}"
                ) from error
            for nth, reply in zip(asked, found, strict=True):
                replies[nth] = UsageReply(*reply)
        raise StoreError(f"a customer changed {_TRIES} times while its usage was read; try again")

    async def log_unreadable(self, what: str, customer: str, error: Exception) -> None:
        """Log once that a customer is skipped, and what it lacks for that."""
        (await self.admin()).warn_once(
            f"no {what} for customer {customer!r}: the stored data cannot be read: {damage_of(error)!r}"
        )

    async def count_members(self, admin: Admin, keys: Sequence[str], *, limit: str | int) -> dict[int, int]:
        """Count the members of sorted sets up to a score, by position in ``keys``; empty sets are left out.

        One script asks a single server. On a cluster each key may be on another server, and a node that the
        URL names as one server refuses keys of several slots. A set whose server is down, or whose key is
        damaged, counts as one member: the next command to it raises the error, and the other sets are used.

        Args:
            admin: sends the commands.
            keys: of sorted sets.
            limit: the score, or ``+inf``.

        Raises:
            StoreError: the store does not answer.
        """
        if not self._counts_each:
            try:
                reply: list[int] = await admin.run(self.scripts["count_due"], [*keys], limit)
            except StoreError as error:
                if _OTHER_SLOT not in str(error):
                    raise
                self._counts_each = True
            else:
                return {nth - 1: members for nth, members in zip(reply[::2], reply[1::2], strict=True)}
        pipe = admin.client.pipeline(transaction=False)
        for key in keys:
            pipe.zcount(key, "-inf", limit)
        replies: list[Any] = await admin.ask(pipe.execute(raise_on_error=False))
        found = [1 if isinstance(reply, Exception) else reply for reply in replies]
        return {nth: members for nth, members in enumerate(found) if members}

    def settle(self, lane: Lane, settlement: Settlement) -> None:
        """Send a settlement, to be applied exactly once; it is queued or spooled until then."""
        lane.queues[settlement.view.shard].settle(settlement)

    async def settle_acknowledged(self, settlements: Sequence[Settlement], lane: Lane | None = None) -> None:
        """Settle, and wait until the store has acknowledged all; after a timeout, until they are spooled.

        Raises:
            QuantityError, StoreError: one can never be recorded, or is lost.
        """
        lane, loop = lane or await self.lane(), asyncio.get_running_loop()
        waiters = {loop.create_future(): settlement for settlement in settlements}
        for waiter, settlement in waiters.items():
            settlement.waiter = waiter
            self.settle(lane, settlement)
        done, pending = await asyncio.wait(waiters, timeout=self._timeout_s)
        if pending and lane.spool is not None:
            for shard in {waiters[waiter].view.shard for waiter in pending}:
                lane.queues[shard].spill()
            done, pending = await asyncio.wait(waiters, timeout=_SPOOL_WAIT_S)
        if pending and self._throttle.is_due("unacknowledged"):
            _logger.warning("the store has not acknowledged what was recorded yet; it is kept and sent again")
        for error in [waiter.exception() for waiter in done]:  # Of each: asyncio logs others as unread.
            if error is not None:
                raise error

    async def send_spools(self, *, within_s: float = 300.0) -> OrphanedSpools:
        """Replay all spools, including those of dead processes.

        Args:
            within_s: how long the store may take nothing.

        Raises:
            StoreError: the store is down, and there are spools.
        """
        if self.spool_dir is None:
            return NO_SPOOLS
        spool = (await self.start()).spool  # Connected, if the store can be reached.
        return await spool.send_all(within_s=within_s) if isinstance(spool, EventLoopSpool) else NO_SPOOLS

    def _new_spool(self, directory: Path, lane: Lane) -> EventLoopSpool:
        return EventLoopSpool(
            directory,
            lane=lane,
            cache=lambda: self.cache,
            keys=self.keys,
            store=str(self.address),
            now_ms=self.now_ms,
        )

    def _undo_unclaimed(self, decision: PreparedDecision, decided_ms: int) -> None:
        """Release the hold of a request that no longer waits for its decision."""
        if (lane := self.lanes.get(asyncio.get_running_loop())) is not None:
            self.settle(lane, undo_decision(decision, decided_ms))

    def _load_script(self, name: str, *, is_audited: bool = False) -> Script:
        return scripts.load(
            name,
            is_audited=is_audited,
            clock="server" if self.host_clock is time else "caller",
            dialect="fake" if self.address.kind == "memory" else "server",
        )


def _prepare_demands(demands: Mapping[str, Demand]) -> Prepare:
    return lambda view, mode: prepare_asking(view, demands, mode)
