"""Token usage off the request: what an object of an SDK comes to on the meters of the plans file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from meterkit.asgi.metered import dimensions_of, used_by_model
from meterkit.errors import MeterkitError
from meterkit.store.customer_id import check_event_id
from meterkit.store.used import NOTHING_USED, Used
from meterkit.tokens.objects import calls_of, usage_of
from meterkit.tokens.plain_values import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.store.compiled import CompiledCatalog
    from meterkit.store.store import Store
    from meterkit.tokens.call_usage import CallUsage

__all__ = ["TOKEN_METERS", "captured", "record_calls", "used_of"]

_logger = logging.getLogger("meterkit.asgi")

TOKEN_METERS: Final = (
    *("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens"),
    "total_tokens",
)


def used_of(
    obj: object,
    compiled: CompiledCatalog,
    *,
    beside: Mapping[str, int] | None = None,
    model: str | None = None,
    provider: str | None = None,
) -> Sequence[Used] | None:
    """What the calls in an object have used, those of one model together.

    Args:
        obj: see :func:`meterkit.usage_of`.
        compiled: knows the meters.
        beside: what is counted with it, of other meters than those of tokens.
        model: overrules what the object says; for meters that ask for it (``where:``).
        provider: likewise.

    Returns:
        None where the object says nothing of usage.

    Raises:
        MeterkitError: no meter of tokens is declared that could count it.
    """
    calls = calls_of(obj)
    if not calls:
        return None
    if compiled.counters.isdisjoint(TOKEN_METERS):
        names = ", ".join(TOKEN_METERS)
        raise MeterkitError(
            f"{compiled.catalog.source}: found no meter that counts tokens; declare any of {names}"
        )
    calls = tuple(
        replace(call, model=model or call.model, provider=provider or call.provider) for call in calls
    )
    found = used_by_model(calls, compiled)
    others = {meter: quantity for meter, quantity in (beside or {}).items() if meter not in TOKEN_METERS}
    first = found[0] if found else NOTHING_USED
    return [
        first._replace(recorded={**first.recorded, **others}, rated={**first.rated, **others}),
        *found[1:],
    ]


async def record_calls(store: Store, customer: str, obj: object, *, event_id: str | None) -> CallUsage | None:
    """Count what the calls in an object have used; see :meth:`meterkit.MeterKit.record_usage`."""
    if event_id is not None:
        check_event_id(event_id)
    used = used_of(obj, store.cache)
    if used is None:
        _logger.warning(
            "record_usage() found no token usage in an object of type %s; nothing is counted of it",
            kind_of(obj).__name__,
        )
        return None
    for at, part in enumerate(used):
        # Each model's part is settled for itself, so that each is remembered for itself.
        name = event_id if event_id is None or at == 0 else f"{event_id}\0{at}"
        await store.record(store.cache.get(customer), part, event_id=name)
    return usage_of(obj)


def captured(
    compiled: CompiledCatalog,
    used: Any,
    model: str | None,
    provider: str | None,
    *,
    reserved: Mapping[str, int],
    check: Callable[[Mapping[str, int]], None],
) -> Sequence[Used]:
    """What a reservation is captured with.

    Args:
        compiled: knows the meters.
        used: quantities by meter, or an object with usage.
        model: of what was used.
        provider: likewise.
        reserved: meter to the quantity that was set aside.
        check: refuses quantities that cannot be recorded.

    Raises:
        MeterkitError: an object says nothing of usage; and what ``check`` raises.
    """
    given: Mapping[str, int] | None = used if issubclass(kind_of(used), Mapping) else None
    if given is None or not all(type(quantity) is int for quantity in given.values()):
        found = used_of(used, compiled, beside=reserved, model=model, provider=provider)
        if found is not None:
            return found
        if given is None:
            raise MeterkitError(
                f"capture() found no token usage in an object of type {kind_of(used).__name__}; nothing is "
                "captured: give the quantities by meter, or the response that the SDK returned"
            )
    quantities = given or {}
    check(quantities)
    return [Used.of(quantities, **dimensions_of(model, provider))]
