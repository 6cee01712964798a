"""What a request sets aside before the app runs: of output what it asks for, of input what it seems to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.usage.estimate import (
    estimate_input,
    estimate_request,
    read_choices,
    read_limit,
    request_of,
)
from meterkit.catalog.models import QUANTITY_MAX

if TYPE_CHECKING:
    from collections.abc import Collection

    from meterkit.asgi.usage import InputEstimator
    from meterkit.catalog import Route

__all__ = ["reservation"]

_PER_CHOICE: Final = frozenset({"output_tokens", "reasoning_tokens", "total_tokens"})


def reservation(
    route: Route,
    *,
    body: bytes,
    size: int,
    counters: Collection[str],
    estimate: InputEstimator = estimate_input,
) -> tuple[dict[str, int], dict[str, str]]:
    """Meter to the quantity that a request of a route sets aside, and what is known of the usage to come.

    Of each meter in ``reserve:`` what the body names, at most the ceiling, or the default; of output for as
    many answers as the body asks for. Where the meters are declared and not in ``reserve:``, of
    ``input_tokens`` an estimate, and of ``total_tokens`` input and output together.

    Args:
        route: the route.
        body: as much of the request's body as was read.
        size: bytes of the whole of it, as far as that is known.
        counters: the meters that can be counted on.
        estimate: what measures the input.

    Returns:
        The quantities; and the dimensions that meters derived from others ask for: ``model``, where named.
    """
    if not route.reserve:
        return {}, {}
    request = request_of(body)
    model = request.get("model")
    choices = read_choices(request)
    held: dict[str, int] = {}
    for reserve in route.reserve:
        named = None if reserve.field is None else read_limit(request, reserve.field)
        quantity = min(reserve.default if named is None else named, reserve.ceiling)
        times = choices if reserve.meter in _PER_CHOICE else 1
        held[reserve.meter] = min(quantity * times, QUANTITY_MAX)
    entered = held.get("input_tokens")
    if entered is None:
        entered = min(estimate_request(body, size=size, estimate=estimate, request=request), QUANTITY_MAX)
        if "input_tokens" in counters:
            held["input_tokens"] = entered
    if "total_tokens" in counters and "total_tokens" not in held:
        held["total_tokens"] = min(entered + held.get("output_tokens", 0), QUANTITY_MAX)
    return held, {"model": model} if isinstance(model, str) and model else {}
