"""Jobs that a provider goes on with after the request: settlement, holds, and polls of the customer's job."""

from __future__ import annotations

from asyncio import get_running_loop, sleep
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple
from urllib.parse import unquote

from meterkit.catalog.routes import additions_of, charging_meters
from meterkit.decisions.packed import EventMark
from meterkit.errors import StoreError
from meterkit.store.call_amounts import used_by_model
from meterkit.store.provider_jobs import JobClaim, claim_job, end_job, find_owners, hold_job, remember_job
from meterkit.store.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Scope

    from llm_usage import CallUsage
    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.provider_jobs import Counting
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

_OWNERS_MAX: Final = 10_000
_FIRST_PAUSE_S: Final = 0.25
_PAUSE_MAX_S: Final = 30.0


def settle_jobs(
    store: Store,
    lane: Lane,
    view: CustomerView,
    decided: PreparedDecision | None,
    calls: Mapping[str, CallUsage],
    *,
    route: Route,
    billed: bool,
    decided_ms: int | None = None,
) -> bool:
    """Count each job that has ended, once, for the customer who began it; hold on for those that go on.

    A request whose outcome is not billed counts none: a client that hangs up could else have a job for free.

    Args:
        store: where they are counted.
        lane: of the event loop that runs.
        view: the customer of the request.
        decided: the decision that holds what the request has reserved.
        calls: by the event ids under which they are counted.
        route: the line of the plans file that the request falls under.
        billed: whether the outcome of the request is billed.
        decided_ms: time of the decision by the store's clock.

    Returns:
        Whether a job gives back to the customer's rates what they counted at the decision, when it has ended.
    """
    keeps_rates = False
    for name, call in calls.items():
        job_id = call.response_id or ""
        if call.source == "missing":
            if decided is not None:
                given_ms = None if keeps_rates else decided_ms
                keeps_rates |= hold_job(store, lane, view, job_id, decided, given_ms)
            lane.finish(_remember_job(store, job_id, view, route.match))
            continue
        end_job(store, job_id)
        if billed:
            lane.finish(_count_job(store, lane, view, name, call, route.match))
    return keeps_rates


async def _remember_job(store: Store, job_id: str, view: CustomerView, route: str) -> None:
    owners = store.job_holds.owners
    owners.setdefault(job_id, view)
    if len(owners) > _OWNERS_MAX:
        del owners[next(iter(owners))]
    await _retry_until_answered(lambda: remember_job(store, job_id, view, route))


async def _count_job(
    store: Store, lane: Lane, view: CustomerView, name: str, call: CallUsage, route: str
) -> None:
    """Count a job that has ended; if the store is down, as soon as it is back."""
    job_id = call.response_id or ""
    by: Counting | None = "whole" if used_by_model([call], view.cache) else None

    def settle(claim: JobClaim) -> None:
        if claim.owner is None or not claim.counts:
            return
        owner = store.cache.rebind(claim.owner)  # The plans file may have changed since it was found.
        key = store.keys.event(owner.shard, owner.customer, name)
        for used in used_by_model([call], owner.cache):
            store.settle(lane, Settlement(owner, used=used, event=EventMark(key)))

    try:
        settle(await claim_job(store, job_id, view, route, by=by))
    except StoreError:
        known = store.job_holds.owners.get(job_id)
        settle(JobClaim(known, counts=True))  # It waits in the spool, which survives this process.
        claim = await _retry_until_answered(lambda: claim_job(store, job_id, view, route, by=by))
        if known is None:
            settle(claim)


async def _retry_until_answered(ask: Callable[[], Awaitable[Result]]) -> Result:
    """Ask until the store answers, or the lane stops."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await ask()
        except StoreError:
            await sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def call_on_loop(store: Store, lane: Lane, call: Callable[[*Args], object], *arguments: *Args) -> None:
    """Call something in the event loop of a lane: at once where that runs here, or where it is gone."""
    home = next((loop for loop, known in tuple(store.lanes.items()) if known is lane), None)
    try:
        here = get_running_loop()
    except RuntimeError:
        here = None  # A background task that runs in a thread.
    if home is None or here is home:
        call(*arguments)
    else:
        home.call_soon_threadsafe(call, *arguments)


_REASONS: Final = frozenset({"rate", "included", "cap", "credits", "spend"})
_METHODS: Final = frozenset({"GET", "HEAD", "DELETE"})
_ASKED_BY_NO_POLL: Final = frozenset({"usage", "records"})
_CANCEL: Final = "/cancel"
_SEGMENTS_MAX: Final = 4
_JOB_ID_CHARS_MAX: Final = 256


async def is_poll_of_known_job(
    store: Store, view: CustomerView, route: Route, decision: Decision, scope: Scope
) -> bool:
    """Whether a refused request only fetches or cancels a job that the same customer began.

    That costs a further round trip, and only where the plan has refused the request.

    Args:
        store: which has refused it.
        view: the customer.
        route: of the request.
        decision: the refusal.
        scope: of the request.
    """
    if decision.degraded or decision.reason not in _REASONS:
        return False
    path: str = scope["path"]
    if scope.get("method", "").upper() not in _METHODS and not path.endswith(_CANCEL):
        return False
    meters = view.cache.catalog.meters
    tokens = charging_meters(meters)
    additions = additions_of(route, meters)
    if not any(additions.get(name) in _ASKED_BY_NO_POLL for name in tokens):
        return False  # A poll asks for the rest as well, and would be refused again.
    names = [unquote(name) for name in path.split("/")[-_SEGMENTS_MAX:] if name]
    known = [name for name in names if len(name) <= _JOB_ID_CHARS_MAX]
    # A route that records tokens of its own could add more of them each time that an ended job is fetched.
    serves_ended = tokens.isdisjoint(route.records)
    with suppress(StoreError):
        owners = await find_owners(store, known, with_ended=serves_ended)
        return (view.customer, view.anonymous) in owners
    return False
