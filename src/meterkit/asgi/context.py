"""The request that is being served, for the code that serves it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from meterkit.asgi.current import Current
    from meterkit.asgi.exchange import Exchange

__all__ = ["current", "exchange", "exchange_of", "record"]

exchange: ContextVar[Exchange] = ContextVar("meterkit_exchange")


def current() -> Current:
    """Who the current request is served to, and why.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    return exchange_of("current()").current()


def record(meter: str | None = None, quantity: int | None = None, /, **quantities: int) -> None:
    """Count usage of the current request: ``record("tokens", 12)`` or ``record(tokens=12, pages=1)``.

    It is never refused, adds up over the request, and is billed by the request's outcome. May be called from
    synchronous and asynchronous code, and from background tasks.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
        UnknownMeterError: a meter is not in the plans file, or is a gauge or derived.
        QuantityError: a quantity is not an integer from 0 to 10^15 - 1.
    """
    if (meter is None) != (quantity is None):
        raise TypeError("record() takes a meter and a quantity, or quantities by keyword")
    if meter is not None and quantity is not None:
        quantities = {meter: quantity, **quantities}
    found = exchange_of("record()")
    found.check_meters(quantities)
    found.record(quantities)


def exchange_of(what: str) -> Exchange:
    """The current request's.

    Args:
        what: the call that asks for it, for the error.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    found = exchange.get(None)
    if found is None:
        raise MeterkitError(
            f"{what} was called outside of a request that MeterMiddleware has decided: no route of the plans "
            "file matches this request, the route is exempt, or there is no request at all (there, use the "
            "kit's own record())"
        )
    return found
