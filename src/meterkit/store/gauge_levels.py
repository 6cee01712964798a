"""Levels of gauges, read, changed and held. They are facts of the app, independent of billing periods.

A level is set by a script of its own, at once. As a settlement it could be applied an hour late, over newer
levels.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.gauges import GaugeLimit, StoredLevel
from meterkit.decisions.keys import meter_token
from meterkit.decisions.packed import read_gauge_mark
from meterkit.decisions.periods import HOLD_SLOT_MS
from meterkit.errors import MeterkitError, QuantityError, StoreError
from meterkit.store import replies
from meterkit.store.prepared_decisions import prepare_holding, read_decision
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import HeldQuantities

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

    from meterkit.decisions.decision import Decision
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView, PreparedDecision

_DONE: Final = 0
_COUNTED_BEFORE: Final = 1
_CHANGED_OTHERWISE: Final = 5
_TRIES: Final = 8
_WITHOUT_NOTICE: Final = 3


async def read_level(store: Store, view: CustomerView, meter: str) -> int:
    """Level of a gauge.

    Raises:
        StoreError: the store does not answer, or what it keeps is damaged.
    """
    try:
        return StoredLevel.read(await store.ask("hget", view.keys.levels, meter)).level
    except ValueError as error:
        raise StoreError(
            f"the level of {meter} of customer {view.customer!r} cannot be read: {error}"
        ) from error


async def change_level(
    store: Store,
    view: CustomerView,
    meter: str,
    quantity: int,
    *,
    how: Literal["set", "adjust"],
    event_id: str | None,
) -> int:
    """Set a level, or change it by a quantity; return the new level.

    Raises:
        QuantityError: it would be below 0, or above 10^15 - 1; nothing is done.
        MeterkitError: the event id has changed this gauge otherwise; nothing is done.
        StoreError: the store does not answer; whether the level was changed is not known.
    """
    names = [view.keys.levels, view.keys.state, view.keys.notices, view.keys.over]
    if event_id is not None:
        # No customer id begins with NUL: this separates an IP address from a customer with the same id.
        owner = f"\0{view.customer}" if view.anonymous else view.customer
        names.append(store.keys.event(view.shard, owner, event_id))
    token = meter_token(meter)
    reply = await run_on_gauge(
        store,
        "set_level",
        names,
        view,
        meter,
        lambda thresholds: (how, quantity, "" if view.anonymous else view.customer, thresholds, token),
    )
    if reply[0] == _CHANGED_OTHERWISE:
        raise MeterkitError(
            f"event_id {event_id!r} of customer {view.customer!r}: {meter} was changed under it by"
            f" `{read_gauge_mark(reply[3], meter)}` before, now `{how} {quantity}` is given; the level stays"
            f" {reply[2]}: give another change an event_id of its own, and repeat a call as it was"
        )
    if reply[0] not in {_DONE, _COUNTED_BEFORE}:
        raise _bounds_error(meter, int(reply[2]), quantity)
    if len(reply) > _WITHOUT_NOTICE:
        view.cache.on_notice(view.shard)
    return int(reply[2])


async def run_on_gauge(
    store: Store,
    script: str,
    names: list[str],
    view: CustomerView,
    gauge: str,
    rest: Callable[[str], Iterable[str | int]],
) -> Any:
    """Run a script with the customer's newest state, again if that has changed; return its reply.

    Args:
        store: the store.
        script: name of the script.
        names: names of its keys.
        view: of the customer.
        gauge: name of the gauge.
        rest: returns the script's further arguments, given the gauge's packed thresholds.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    for _ in range(_TRIES):
        view = view.cache.newest(view)
        entitlement, bounds = view.entitlements[gauge], view.effective.bounds
        limit = GaugeLimit.of(entitlement)
        thresholds = () if view.anonymous else entitlement.thresholds
        reply: Any = await admin.run(
            store.scripts[script],
            names,
            view.rev,
            min(view.effective.valid_until_ms, bounds.next_end_ms),
            bounds.start_ms,
            bounds.end_ms,
            bounds.next_end_ms,
            gauge,
            -1 if limit is None else limit.included,
            *rest(" ".join(f"{level} {percent}" for level, percent in thresholds)),
        )
        if reply[0] != replies.STALE:
            return reply
        view.cache.learn(view, reply)
    raise StoreError(
        f"customer {view.customer!r} changed {_TRIES} times meanwhile; try again", executed=False
    )


def _bounds_error(meter: str, level: int, quantity: int) -> QuantityError:
    if level + quantity > QUANTITY_MAX:
        return QuantityError(
            f"{meter}: the level is {level}; {quantity} more would pass {QUANTITY_MAX}; nothing is changed"
        )
    return QuantityError(
        f"{meter}: the level is {level}; {-quantity} less would be below 0; nothing is changed: set the"
        " true level where the app knows it"
    )


@asynccontextmanager
async def held_meanwhile(
    store: Store, customer: str, growth: Callable[[CustomerView], Mapping[str, int]]
) -> AsyncGenerator[tuple[Decision, bool]]:
    """Decide whether gauges may grow, and hold the growth while the block runs; also say whether it is held.

    Args:
        store: of the kit.
        customer: whose gauges they are.
        growth: returns it by gauge, given the customer's newest state.

    Raises:
        StoreError: the store does not answer.
    """

    def prepare(view: CustomerView, mode: str) -> PreparedDecision:
        return prepare_holding(view, growth(view), mode)

    decided, reply = await store.decide(store.cache.get(customer), prepare)
    decision = read_decision(decided, reply)
    held = {gauge: quantity for gauge, quantity in decided.held.items() if quantity}
    is_held = decision.allowed and bool(held) and reply[0] in replies.HELD
    try:
        yield decision, is_held
    finally:
        if is_held:
            released = HeldQuantities(held, (), reply[1] // HOLD_SLOT_MS)
            await store.settle_acknowledged([Settlement(decided.view, held=released)])
