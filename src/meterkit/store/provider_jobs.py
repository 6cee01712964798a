"""Provider jobs that outlive their request: the store has the customer who pays for each, and what it holds.

Event ids belong to one customer, so the owner is stored apart: a customer that polls another one's job must
not pay for it.
"""

from __future__ import annotations

import json
import logging
from asyncio import get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from meterkit.decisions.keys import job_digest
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError
from meterkit.store import replies
from meterkit.store.reservations import HoldOwner, prepare_renewing
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import RateCorrection
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

_logger = logging.getLogger("meterkit.store")
Counting = Literal["whole", "lines"]
"""Counting of a job: by the figures of the whole job, or line by line. A batch has both."""
_PAGE: Final = 256
_DELETED: Final = '["",true,""]'
"""Owner of a job whose customer was deleted."""
_KEPT_MS: Final = 40 * 86_400_000
"""Longer than event ids, so that no other customer pays for a job whose id still counts once."""
_HELD_MAX_MS: Final = 3_600_000
"""Later usage is counted too."""
_LOG_EVERY_MS: Final = 3_600_000
_HOLDS_MAX: Final = 10_000
_TRIES: Final = 3


class JobClaim(NamedTuple):
    """Customer who pays for a job, and whether the job is counted in the requested way.

    The owner is None if no customer is known, or if the customer who began the job was deleted.
    """

    owner: CustomerView | None
    counts: bool
    is_deleted: bool = False


async def remember_job(store: Store, job_id: str, view: CustomerView, route: str) -> None:
    """Store the customer whose request began a job, unless it has one. Raises StoreError."""
    await _write_owner(store, job_id, view, {"owner": _dump_owner(view, route)})


async def claim_job(
    store: Store, job_id: str, view: CustomerView | None, route: str, *, by: Counting | None
) -> JobClaim:
    """Find the customer who pays for an ended job, and fix the way in which it is counted.

    Args:
        store: has the jobs.
        job_id: the provider's id of the job.
        view: the customer who pays if the store does not know who began it; None: none. Not stored for
            lines: a worker may put the lines of many customers into one batch.
        route: route of the request that sees the end; empty: no request.
        by: way of counting; None: the provider reports no figures.

    Raises:
        StoreError: the store does not answer.
    """
    fields = {"ended": "1"}
    if by is not None:
        fields["by"] = by
    if view is None:
        if await store.ask("hget", store.keys.job(job_id), "owner") is None:
            return JobClaim(None, counts=False)
    elif by != "lines":
        fields["owner"] = _dump_owner(view, route)
    owner, counted_by = await _write_owner(store, job_id, view, fields)
    counts = by is not None and counted_by.decode() == by
    if owner is None:
        return JobClaim(view, counts)
    parsed = _parse_owner(owner)
    if parsed is None:
        (await store.admin()).warn_once(
            f"usage of the job {job_id!r} is dropped: what is stored of its customer cannot be read"
        )
        return JobClaim(None, counts=False)
    customer, anonymous, _, *subjects = parsed
    if not customer:
        await _report_dropped(store, job_id)
        return JobClaim(None, counts=False, is_deleted=True)
    given = tuple(subjects[0].items()) if subjects else ()
    return JobClaim(store.cache.get(customer, anonymous=anonymous, subjects=given), counts)


async def find_owners(store: Store, job_ids: Sequence[str], *, with_ended: bool) -> set[tuple[str, bool]]:
    """Customers who began some jobs, each with whether they are anonymous. Raises StoreError.

    Args:
        store: has the jobs.
        job_ids: possible ids of jobs.
        with_ended: include ended jobs.
    """
    known = {name: view for name in job_ids if (view := store.job_holds.owners.get(name))}
    found = {(view.customer, view.anonymous) for view in known.values()}
    if found and with_ended:
        return found
    found.clear()
    for name in job_ids:
        owner, ended = await store.ask("hmget", store.keys.job(name), ["owner", "ended"])
        if ended is not None and not with_ended:
            continue
        if parsed := owner and _parse_owner(owner):  # Empty where its customer was deleted.
            customer, anonymous, *_ = parsed
            found.add((customer, anonymous))
        elif owner is None and name in known:  # The owner is not written yet.
            found.add((known[name].customer, known[name].anonymous))
    return found


async def has_ended(store: Store, job_id: str) -> bool:
    """Whether a job has ended. Raises StoreError."""
    return await store.ask("hget", store.keys.job(job_id), "ended") is not None


async def forget_jobs(store: Store, customer: str) -> int:
    """Erase a customer from the jobs that it began; return their number.

    The jobs stay stored until they expire, so that no other customer pays for them. Raises StoreError.
    """
    admin, index = await store.admin(), store.keys.jobs(customer)
    owners = store.job_holds.owners
    for job_id in [job_id for job_id, view in owners.items() if view.customer == customer]:
        del owners[job_id]
    erased = 0
    while digests := await admin.ask(admin.client.zrange(index, 0, _PAGE - 1)):
        keys = [store.keys.job_of(digest.decode()) for digest in digests]
        found = await admin.ask_all(("hget", key, "owner") for key in keys)
        own = [key for key, owner in zip(keys, found, strict=True) if _is_owned_by(owner, customer)]
        pipe = admin.client.pipeline(transaction=False)
        for key in own:
            pipe.hset(key, "owner", _DELETED)
            pipe.pexpire(key, _KEPT_MS, nx=True)
        pipe.zrem(index, *digests)
        await admin.ask(pipe.execute())
        erased += len(own)
    return erased


async def _write_owner(
    store: Store, job_id: str, view: CustomerView | None, fields: Mapping[str, str]
) -> tuple[Any, Any]:
    """Write fields of a job, and index it under its customer for a deletion."""
    if view is None or view.anonymous or "owner" not in fields:
        return await _write_fields(
            store, job_id, fields
        )  # IP addresses are never deleted: their jobs expire.
    key, digest = store.keys.jobs(view.customer), job_digest(job_id)
    admin = await (await store.admin()).at(key)
    now_ms = admin.now_ms()
    pipe: Any = admin.client.pipeline(transaction=True)
    pipe.zadd(key, {digest: now_ms + _KEPT_MS})
    pipe.pexpire(key, _KEPT_MS)
    pipe.zrangebyscore(key, "-inf", now_ms, start=0, num=_PAGE)
    # The index is written first: after a crash in between, a deletion finds the job.
    *_, gone = await admin.ask(pipe.execute())
    written = await _write_fields(store, job_id, fields)
    if not _is_owned_by(written[0], view.customer):
        gone.append(digest)
    if gone:
        await admin.ask(admin.client.zrem(key, *gone))
    return written


async def _report_dropped(store: Store, job_id: str) -> None:
    """Log once for each job, in all processes, that usage of a deleted customer is dropped."""
    if await store.ask("hsetnx", store.keys.job(job_id), "dropped", "1"):
        _logger.warning(
            "usage of the job %r is dropped: the customer whose request began it was deleted; where another "
            "customer is to pay for it, record it by kit.record",
            job_id,
        )


def _parse_owner(owner: bytes) -> list[Any] | None:
    """Parse :func:`_dump_owner`; None: it cannot be read."""
    try:
        customer, anonymous, route, *subjects = json.loads(owner)
        return [str(customer), bool(anonymous), route, *(dict(one) for one in subjects)]
    except UNREADABLE:
        return None


def _is_owned_by(owner: bytes | None, customer: str) -> bool:
    return owner is not None and (_parse_owner(owner) or [])[:2] == [customer, False]


def _dump_owner(view: CustomerView, route: str) -> str:
    subjects = () if view.subjects is None else (dict(view.subjects.given),)
    return json.dumps([view.customer, view.anonymous, route, *subjects], ensure_ascii=False)


async def _write_fields(store: Store, job_id: str, fields: Mapping[str, str]) -> tuple[Any, Any]:
    """Write missing fields; return the owner and the way of counting."""
    key = store.keys.job(job_id)
    admin = await (await store.admin()).at(key)
    pipe: Any = admin.client.pipeline(transaction=True)
    for name, value in fields.items():
        pipe.hsetnx(key, name, value)
    pipe.pexpire(key, _KEPT_MS, nx=True)
    pipe.hmget(key, ["owner", "by"])
    *_, (owner, by) = await admin.ask(pipe.execute())
    return owner, by


class JobHold(HoldOwner):
    """Hold of a provider's job after its request.

    It is released when this process sees the job's end, some minutes after another process has seen it, at
    the latest after an hour, and when the kit stops.

    The customer's rates keep what they counted at the decision: a client that chooses to wait for its jobs
    could else begin any number of them. The release gives it back to them, as the job's usage counts.

    Args:
        job_id: the provider's id.
        request: the decision of the request, which holds the quantities.
        request_ms: its time by the store's clock; None: another job gives back to the rates.
    """

    __slots__ = ("_begun_ms", "_job_id", "_request", "_request_ms", "_view")

    def __init__(
        self,
        store: Store,
        lane: Lane,
        view: CustomerView,
        job_id: str,
        request: PreparedDecision,
        request_ms: int | None,
    ) -> None:
        self._store = store
        self._lane = lane
        self._view = view
        self._job_id = job_id
        self._request = request
        self._request_ms = request_ms
        self._decided = self._renewed = None
        self._begun_ms = self._decided_ms = store.now_ms()
        self._slot = self._begun_ms // HOLD_SLOT_MS
        self._settled = False

    def begin(self) -> None:
        """Request the hold, before that of the request is released."""
        lane = self._lane
        if lane is not None:
            decision = self._prepare(self._view)
            try:
                pending = lane.call(decision)
            except MeterkitError:  # Of a cluster, the node of this customer is down.
                self.release_hold()
            else:
                lane.spawn(self._acquire_hold(lane, decision, pending))

    def _prepare(self, view: CustomerView) -> PreparedDecision:
        """Decision that holds the quantities of the request, at the same costs."""
        return prepare_renewing(view, self._request.reserved, (), self._request.program.costs)

    async def _acquire_hold(self, lane: Lane, decision: PreparedDecision, pending: Any) -> None:
        view = self._view
        with suppress(MeterkitError):
            reply = await pending
            for _ in range(_TRIES):
                if isinstance(reply, ReplyError):
                    reply = await lane.retry_call(decision, reply)
                if reply[0] != replies.STALE:
                    break
                view = view.cache.learn(view, reply)
                decision = self._prepare(view)
                reply = await lane.ask(decision)
            if reply[0] == replies.ALLOWED:
                self._decided, self._slot = decision, reply[1] // HOLD_SLOT_MS
                if self._settled:
                    self._store.settle(lane, settle_decision(decision, self._slot, billed=False))
                else:
                    lane.live.add(self)
        if self._decided is None:
            self.release_hold()

    async def renew(self) -> None:
        """Renew the hold, unless the job has ended elsewhere or has taken too long."""
        if self._store.now_ms() - self._begun_ms >= _HELD_MAX_MS:
            self.release_hold()
            self._log_unfinished()
        elif await self._has_ended():
            self.release_hold()
        else:
            await super().renew()

    async def _has_ended(self) -> bool:
        with suppress(MeterkitError, OSError):
            return await has_ended(self._store, self._job_id)
        return False

    def _log_unfinished(self) -> None:
        holds, now_ms = self._store.job_holds, self._store.now_ms()
        if holds.logged_ms is None or now_ms - holds.logged_ms >= _LOG_EVERY_MS:
            holds.logged_ms = now_ms
            _logger.warning(
                "a provider's job has not ended within an hour, as far as meterkit has seen: its hold is "
                "released, and its usage is counted if meterkit sees its end later"
            )

    def release_hold(self) -> None:
        """Release the hold. Idempotent."""
        lane, holding, was_settled = self._lane, self._renewed or self._decided, self._settled
        self._settled = True
        holds = self._store.job_holds.holds
        if holds.get(self._job_id) is self:
            del holds[self._job_id]
        if lane is None or was_settled:
            return
        if holding is not None:
            lane.live.discard(self)
            self._store.settle(lane, settle_decision(holding, self._slot, billed=False))
        request, rates = self._request, self._request.program.rates
        if rates and self._request_ms is not None:
            correction = RateCorrection(request.reserved, rates, self._request_ms)
            self._store.settle(lane, Settlement(request.view, correction=correction))

    def end(self) -> None:
        """Release the hold, from any event loop or thread."""
        lane = self._lane
        try:
            here = get_running_loop()
        except RuntimeError:
            here = None
        if lane is None or lane.loop is here:
            self.release_hold()
        else:
            with suppress(RuntimeError):  # That loop is closed, and its holds with it.
                lane.loop.call_soon_threadsafe(self.release_hold)


def hold_job(
    store: Store,
    lane: Lane,
    view: CustomerView,
    job_id: str,
    request: PreparedDecision,
    request_ms: int | None,
) -> bool:
    """Hold for a job the quantities that its request held, unless the job has a hold; see :class:`JobHold`.

    Returns:
        Whether the job has the hold now, so that it gives back to the rates what the request counted in them.
    """
    holds = store.job_holds.holds
    if not request.reserved or job_id in holds or len(holds) >= _HOLDS_MAX or lane.is_open:
        return False
    hold = holds[job_id] = JobHold(store, lane, view, job_id, request, request_ms)
    hold.begin()
    return True


def end_job(store: Store, job_id: str) -> None:
    """Release the hold of an ended job."""
    hold = store.job_holds.holds.get(job_id)
    if hold is not None:
        hold.end()
