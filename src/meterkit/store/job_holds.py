"""Hold of a provider's job after its request: kept in this process, renewed until the job has ended."""

from __future__ import annotations

import logging
from asyncio import get_running_loop
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError
from meterkit.redis.connection import ReplyError
from meterkit.store import replies
from meterkit.store.holds import HoldOwner, prepare_renewing
from meterkit.store.job_claims import has_ended
from meterkit.store.settlement import Settlement, settle_decision
from meterkit.store.settlement_parts import RateCorrection

if TYPE_CHECKING:
    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

_logger = logging.getLogger("meterkit.store")
_HELD_MAX_MS: Final = 3_600_000
"""Later usage is counted too."""
_LOG_EVERY_MS: Final = 3_600_000
_HOLDS_MAX: Final = 10_000
_TRIES: Final = 3


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
