"""Usage of model calls that an app reports outside a request: ``record_usage`` and ``capture``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any

from llm_usage import CallUsage, calls_of, usage_of
from llm_usage.batch_lines import call_event_id, mark_batched, read_batch_line
from llm_usage.objects import pending_jobs
from llm_usage.plain_values import kind_of
from meterkit.catalog.usage_meters import TOKEN_METERS, USAGE_METERS
from meterkit.decisions.model_charges import price_call
from meterkit.decisions.packed import EventMark
from meterkit.decisions.periods import from_ms
from meterkit.errors import MeterkitError, StoreError
from meterkit.store.call_amounts import check_captured, price_quantities, used_by_model
from meterkit.store.input_checks import check_event_id
from meterkit.store.provider_jobs import JobClaim, claim_job, end_job, remember_job
from meterkit.store.settlement import Settlement
from meterkit.store.settlement_parts import NOTHING_USED, UsedQuantities, add_quantities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_usage.batch_lines import BatchLine
    from meterkit.store.compiled_catalog import CompiledCatalog
    from meterkit.store.provider_jobs import Counting
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_logger = logging.getLogger("meterkit.asgi")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedUsage(CallUsage):
    """Usage that :meth:`meterkit.MeterKit.record_usage` has counted, with its money.

    Attributes:
        cost_micros: what the provider charges, in micro-units of US dollars, exactly; None: not known.
        charged_micros: likewise what the customer's balance in money is charged; None: there is none.
        revenue_micros: what the customer pays for it: overage at its price, and what the balance has paid, in
            micro-units of the currency; without the latter where that is not US dollars. None: not known,
            as where the store was down or had counted it before.
    """

    cost_micros: Fraction | None = None
    charged_micros: Fraction | None = None
    revenue_micros: Fraction | None = None


async def record_calls(
    store: Store, view: CustomerView | None, obj: object, *, event_id: str | None, call_id: str | None
) -> RecordedUsage | None:
    """Count the usage of the calls in an object; see :meth:`meterkit.MeterKit.record_usage`."""
    event_id = None if event_id is None else check_event_id(event_id)
    call_id = None if call_id is None else check_event_id(call_id, "call_id")
    line = read_batch_line(obj)
    if line is not None and call_id is None:
        raise MeterkitError(
            f"record_usage: line {line.name!r} of a batch was given without call_id; give the id of the batch"
        )
    answer: object = obj if line is None else line.answer
    calls, pending = calls_of(answer), pending_jobs(answer)
    if view is not None and not store.is_off:
        for job_id in pending:
            await remember_job(store, job_id, view, "")
    if not _usage_of_calls(calls, store.cache) and line is None and not pending:
        _logger.warning(
            "record_usage() found no token usage in an object of type %s; nothing is counted of it",
            kind_of(obj).__name__,
        )
        return None
    if call_id is not None:
        calls = _assign_ids(calls, call_id, line)
    late = [call for call in calls if call_event_id(call) is not None and not store.is_off]
    by: Counting = "whole" if line is None else "lines"
    revenues: list[Fraction | None] = []
    is_unknown = False
    for call in late:
        job_id = call_id or call.response_id or ""
        of_parts = await _count_job(store, view, call, job_id, by=by, event_id=event_id)
        is_unknown = is_unknown or of_parts is None
        revenues += of_parts or ()
    own = [call for call in calls if call_event_id(call) is None]
    figures = reduce(add_quantities, (call.units for call in own), dict[str, int]())
    for at, part in enumerate(_usage_of_calls(own, store.cache)):
        if view is None:
            raise MeterkitError(
                "record_usage: found no customer; only a job of a provider is counted without"
            )
        # Each model's part is settled for itself, so that each is remembered for itself.
        part_id = event_id if event_id is None or at == 0 else f"{event_id}\0{at}"
        # A charge may differ in a repeat, the figures behind it not.
        compared = figures if part.charged else {}
        revenues.append(
            await store.record(view, part, event_id=part_id, compared=compared, asks_revenue=True)
        )
    return None if is_unknown else _add_money(usage_of(answer), calls, revenues, store.cache)


def _add_money(
    usage: CallUsage | None,
    calls: Sequence[CallUsage],
    revenues: Sequence[Fraction | None],
    compiled: CompiledCatalog,
) -> RecordedUsage | None:
    """Add cost, charge and revenue to the usage of calls, as far as they are known."""
    if usage is None:
        return None
    recorded = RecordedUsage(**{part.name: getattr(usage, part.name) for part in fields(CallUsage)})
    known = [one for one in revenues if one is not None]
    if known and len(known) == len(revenues):
        recorded = replace(recorded, revenue_micros=sum(known, Fraction(0)))
    costs, at = compiled.call_costs(), from_ms(compiled.now_ms())
    if costs is None:
        return recorded
    cost = [amount for call in calls for amount in costs.of(call, at).values()]
    charged = [amount for call in calls for amount in price_call(compiled.charges, call, at)[0].values()]
    return replace(
        recorded,
        cost_micros=sum(cost, Fraction(0)) if cost else None,
        charged_micros=sum(charged, Fraction(0)) if compiled.charges else None,
    )


def _assign_ids(calls: Sequence[CallUsage], call_id: str, line: BatchLine | None) -> tuple[CallUsage, ...]:
    """Name the calls of a job by the id that the app gives, and those of a batch line by its name."""
    base = call_id if line is None else f"{call_id}\0{line.name}"
    return tuple(
        replace(
            call if line is None else mark_batched(call),
            response_id=base if at == 0 else f"{base}\0{at}",
            outlives=True,
        )
        for at, call in enumerate(calls)
    )


async def _count_job(
    store: Store,
    view: CustomerView | None,
    call: CallUsage,
    job_id: str,
    *,
    by: Counting,
    event_id: str | None,
) -> list[Fraction | None] | None:
    """Count a job, or a part of it, once for the customer who began it.

    Returns:
        The revenue of each part, as far as the store knows; None: the customer is not known.
    """
    parts = used_by_model([call], store.cache)
    owner, counts, is_deleted = await claim_job(store, job_id, view, "", by=by if parts else None)
    end_job(store, job_id)
    if is_deleted:
        return None
    if owner is None:
        _logger.warning(
            "record_usage() was given a job without a customer, and no request that began it is known; "
            "nothing is counted of it: give the customer"
        )
        return None
    return [
        await store.record(owner, part, event_id=event_id, job_id=call_event_id(call), asks_revenue=True)
        for part in (parts if counts else ())
    ]


async def read_captured(
    store: Store,
    view: CustomerView,
    used: Any,
    model: str | None,
    provider: str | None,
    *,
    reserved: Mapping[str, int],
    requested: str | None,
    check: Callable[[Mapping[str, int]], Mapping[str, int]],
) -> tuple[Sequence[UsedQuantities], Sequence[Settlement]]:
    """Read the usage that a reservation is captured with.

    Args:
        store: has the jobs.
        view: the customer.
        used: quantities by meter, or an object with usage.
        model: of what was used.
        provider: likewise.
        reserved: meter to the quantity that was set aside.
        requested: the model that it was set aside for; None: not said.
        check: returns quantities by the plain names of their meters, and refuses what cannot be recorded.

    Returns:
        The usage, one part for each model; and settlements that count each job of a provider once.

    Raises:
        MeterkitError: an object says nothing of usage; and what ``check`` raises.
    """
    compiled = view.cache
    given: Mapping[str, int] | None = used if issubclass(kind_of(used), Mapping) else None
    if given is None or not all(type(quantity) is int for quantity in given.values()):
        jobs: list[Settlement] = []
        own: list[CallUsage] = []
        calls = calls_of(used)
        for call in calls:
            named = replace(call, model=model or call.model or requested, provider=provider or call.provider)
            event_id = call_event_id(call)
            if event_id is None:
                own.append(named)
            else:
                jobs += await _claim_captured(store, view, named, event_id)
        if calls:
            return _add_reserved(_usage_of_calls(own, compiled), reserved, compiled), jobs
        if given is None:
            raise MeterkitError(
                f"capture() found no token usage in an object of type {kind_of(used).__name__}; nothing is "
                "captured: give the quantities by meter, or the response that the SDK returned"
            )
    quantities = check_captured(given or {}, compiled, check)
    return [price_quantities(quantities, compiled, model=model or requested, provider=provider)], ()


def _add_reserved(
    parts: Sequence[UsedQuantities], reserved: Mapping[str, int], compiled: CompiledCatalog
) -> Sequence[UsedQuantities]:
    """Add the reserved quantities of meters that count no tokens to the first part."""
    # The amount of money that was reserved is replaced by the charge, also where that is 0.
    others = {
        meter: quantity
        for meter, quantity in reserved.items()
        if meter not in USAGE_METERS and meter not in compiled.charges
    }
    first, *more = parts or (NOTHING_USED,)
    first = first._replace(recorded={**first.recorded, **others}, rated={**first.rated, **others})
    return [first, *more]


async def _claim_captured(
    store: Store, view: CustomerView, call: CallUsage, event_id: str
) -> Sequence[Settlement]:
    """Settle an ended job that is captured; nothing if it is counted by its lines, or for no customer."""
    parts, job_id = _usage_of_calls([call], view.cache), call.response_id or ""
    if store.is_off:
        return ()
    claim = JobClaim(view, counts=True)
    with suppress(StoreError):  # The settlement is spooled, and its event id counts once.
        claim = await claim_job(store, job_id, view, "", by="whole")
    end_job(store, job_id)
    owner = claim.owner
    if owner is None or not claim.counts:
        return ()
    if owner.cache is not view.cache:  # The plans file has changed since the reservation.
        parts = used_by_model([call], owner.cache)
    mark = EventMark(store.keys.event(owner.shard, owner.customer, event_id))
    return [Settlement(owner, used=part, event=mark) for part in parts]


def _usage_of_calls(calls: Sequence[CallUsage], compiled: CompiledCatalog) -> Sequence[UsedQuantities]:
    """Add up the usage of calls, one part for each model; empty: there are no calls.

    Raises:
        MeterkitError: no meter of tokens is declared that could count it.
    """
    if not calls:
        return ()
    if compiled.counters.isdisjoint(USAGE_METERS) and not compiled.charges:
        names = ", ".join(TOKEN_METERS)
        raise MeterkitError(
            f"{compiled.catalog.source}: found no meter that counts tokens; declare any of {names}"
        )
    return used_by_model(calls, compiled) or [NOTHING_USED]
