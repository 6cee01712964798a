"""Usage of a customer's subjects in this period: users, teams and the like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import SPEND
from meterkit.decisions.customer_state import CustomerState, effective_plan, entitlements_of
from meterkit.decisions.keys import HEAD_FIELD, meter_field
from meterkit.decisions.packed import CounterHead, MeterCounts, unpack_field
from meterkit.decisions.periods import SHORTEST_MS
from meterkit.decisions.subjects import subject_budget
from meterkit.store.script_arguments import Subjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.catalog import Catalog
    from meterkit.store.store import Store

_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectMeter:
    """Usage of a meter by a subject in this period.

    Attributes:
        recorded: units, in the meter's unit.
        held: units that requests in progress hold.
        included: limit by the plan or an override; None: no limit.
    """

    recorded: int
    held: int
    included: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectUsage:
    """Usage of a user, a team or another subject of a customer.

    Attributes:
        kind: of the subject, such as ``user``.
        subject: its id.
        meters: usage by meter, of used and of limited meters.
        spent_micros: spend in the span of its budget, in micro-units of the currency; None: no budget.
        limit_cents: budget for that span, in minor units; None: no budget.
        per: that span: ``period``, ``1d`` or ``1h``; None: no budget.
    """

    kind: str
    subject: str
    meters: Mapping[str, SubjectMeter]
    spent_micros: int | None
    limit_cents: int | None
    per: str | None


async def usage_by(
    store: Store, customer: str, kind: str, *, most: int | None = None
) -> Sequence[SubjectUsage]:
    """Usage of the subjects of a kind with live counters, sorted by id.

    Args:
        store: has the counters.
        customer: a valid id.
        kind: of subjects that a plan declares.
        most: reads only the first so many by id; None: all.

    Raises:
        StoreError: the store does not answer.
    """
    admin, now_ms, keys = await store.admin(), store.now_ms(), store.keys
    of = keys.customer(customer)
    live = ("zrangebyscore", keys.subjects(customer), f"({now_ms}", "+inf")
    states = [("hget", of.state, "data"), ("hget", of.counters, HEAD_FIELD)]
    data, head, members = await admin.ask_all([*states, live])
    state, prefix = CustomerState.parse(data or b""), f"{kind}:"
    period = CounterHead.read(head)
    names = sorted(
        name.decode().removeprefix(prefix) for name in members if name.startswith(prefix.encode())
    )[:most]
    effective = effective_plan(state, store.catalog, now_ms)
    entitlements = entitlements_of(effective, store.catalog)
    catalog = store.catalog.in_currency(effective.currency)
    bounds, is_over = effective.bounds, now_ms >= period.ends_ms
    if bounds.end_ms != period.ends_ms:  # Like close_period.lua: another subscription has cut it short.
        is_over = is_over or bounds.start_ms >= period.begins_ms + SHORTEST_MS
    begins_ms = now_ms if is_over else period.begins_ms
    found: list[SubjectUsage] = []
    for at in range(0, len(names), _PAGE):
        page = names[at : at + _PAGE]
        replies = await admin.ask_all(("hgetall", keys.subject(customer, kind, name)) for name in page)
        for name, fields in zip(page, replies, strict=True):
            given = ((kind, name),)
            subjects = Subjects(customer, given, effective, entitlements, catalog, keys)
            found.append(_usage_of(store, subjects, fields, begins_ms, now_ms, catalog))
    return found


def _usage_of(
    store: Store,
    subjects: Subjects,
    fields: Mapping[bytes, bytes],
    begins_ms: int,
    now_ms: int,
    catalog: Catalog,
) -> SubjectUsage:
    ((kind, name),) = subjects.given
    limits = subjects.limits.get(kind)
    meters: dict[str, SubjectMeter] = {}
    for meter in store.cache.counters:
        packed = fields.get(meter_field(meter).encode())
        allowed = limits.limits.get(meter) if limits is not None else None
        if packed is not None or allowed is not None:
            counts = MeterCounts.read(packed)
            meters[meter] = SubjectMeter(
                recorded=_recorded(counts, begins_ms),
                held=counts.held_at(now_ms),
                included=None if allowed is None else allowed.included,
            )
    budget = None if limits is None else subject_budget(limits, catalog)
    spent: int | None = None
    if budget is not None and budget.window_ms:
        spent = _in_window(fields.get(budget.field.encode()), budget.window_ms, now_ms)
    elif budget is not None:
        spent = _recorded(MeterCounts.read(fields.get(meter_field(SPEND).encode())), begins_ms)
    return SubjectUsage(
        kind=kind,
        subject=name,
        meters=meters,
        spent_micros=spent,
        limit_cents=None if budget is None else budget.policy.quota,
        per=None if budget is None else budget.policy.name.removeprefix(f"{SPEND}-"),
    )


def _recorded(counts: MeterCounts, begins_ms: int) -> int:
    """Units of this period: a subject's field has the period in place of a meter's ``pending``."""
    return counts.included if counts.pending == begins_ms else 0


def _in_window(packed: bytes | None, window_ms: int, now_ms: int) -> int:
    if packed is None:
        return 0
    slot, counted, _ = (value for value in unpack_field(packed) if isinstance(value, int))
    return counted if slot == now_ms // window_ms else 0
