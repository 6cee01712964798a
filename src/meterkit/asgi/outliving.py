"""Settling what outlives a request: usage that is reported late, and jobs that a provider goes on with."""

from __future__ import annotations

from asyncio import get_running_loop
from typing import TYPE_CHECKING, TypeVarTuple

from meterkit.asgi.llm_calls import used_by_model
from meterkit.store.outliving import end_work, keep_hold
from meterkit.store.settlement import Settlement
from meterkit.store.used import NOTHING_USED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision
    from meterkit.tokens.call_usage import CallUsage

__all__ = ["on_loop_of", "settle_outliving"]

Args = TypeVarTuple("Args")


def settle_outliving(
    store: Store,
    lane: Lane,
    view: CustomerView,
    decided: PreparedDecision | None,
    calls: Mapping[str, CallUsage],
    *,
    billed: bool,
) -> None:
    """Count each job that has ended, once; hold on for those that go on.

    Args:
        store: where they are counted.
        lane: of the event loop that runs.
        view: the customer.
        decided: the decision that holds what the request has reserved.
        calls: by the event ids under which they are counted.
        billed: whether the outcome of the request is billed.
    """
    for name, call in calls.items():
        key = store.keys.event(view.shard, view.customer, name)
        if call.source == "missing":
            keep_hold(store, lane, view, key, {} if decided is None else decided.reserved)
            continue
        used, *_ = used_by_model([call], view.cache) or [NOTHING_USED]
        used = used if billed else used._replace(recorded={})
        store.settle(lane, Settlement(view, used=used, event_key=key))
        end_work(store, key)


def on_loop_of(store: Store, lane: Lane, call: Callable[[*Args], object], *arguments: *Args) -> None:
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
