"""Functions for the code that serves a request: its customer and features, and the usage to record."""

from __future__ import annotations

from asyncio import get_running_loop
from contextvars import ContextVar
from functools import partial
from sys import modules
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llm_usage import StreamTap
from llm_usage.objects import read_report
from meterkit.asgi.llm_calls import LlmCalls
from meterkit.asgi.logs import ErrorGuard
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable
    from contextlib import AbstractAsyncContextManager

    from starlette.types import Scope

    from llm_usage import CallUsage
    from meterkit.asgi.admitted_request import Current
    from meterkit.asgi.exchange import Exchange
    from meterkit.store.store import Store

exchange: ContextVar[Exchange | None] = ContextVar("meterkit_exchange")
EXEMPT: Final = "meterkit.exempt"
"""Key in the scope of a request whose line is exempt."""
MCP_REQUEST: Final = "meterkit.mcp"
"""Key in the scope of an MCP request, also after its end: tools may run on."""


def current() -> Current:
    """Customer, plan and decision of the current request.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    return require_exchange("current()").current()


def allows(feature: str) -> bool:
    """Whether the plan that decided the current request has a feature. Does no I/O.

    Not while access is suspended. Where enforcement is ``shadow`` or ``off``, and where the store was down,
    no customer is held to a plan: True.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
        UnknownFeatureError: the feature is not in the plans file.
    """
    refusal = require_exchange("allows()").refusal_without(feature)
    return refusal is None or refusal.allowed


def record(meter: str | None = None, quantity: int | None = None, /, **quantities: int) -> None:
    """Count usage of the current request: ``record("pages", 3)`` or ``record(pages=3, images=1)``.

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
    request = require_exchange("record()")
    request.record(request.check_meters(quantities))


def require_exchange(what: str, scope: Scope | None = None) -> Exchange:
    """Find the current request.

    Args:
        what: the name of the caller, for the error message.
        scope: of the request, where only its own will do: the context also is that of requests which the
            app makes of its own, and which may reach another app in this process.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    request = _find_served()
    if request is None or (scope is not None and not any(value is request for value in scope.values())):
        raise MeterkitError(
            f"{what} was called outside of a request that MeterMiddleware has decided: no route of the plans "
            "file matches this request, the route is exempt, or there is no request at all, as in a child "
            f"process (there, use the kit's own record()){_thread_advice()}"
        )
    request.unfold()
    return request


def find_request() -> Exchange | None:
    """Find the request of the context; None in a child process, which has a copy."""
    return _drop_copy(exchange.get(None))


def is_anonymous(customer: str, store: Store) -> bool:
    """Whether a customer's id is the address of the client whose anonymous request is being served."""
    request = find_request_of(customer, store)
    return request is not None and request.is_anonymous


def find_request_of(customer: str, store: Store) -> Exchange | None:
    """Find the request that is being served, if it is one of a customer."""
    request = _find_served()
    if request is None:
        return None
    request.unfold()
    return request if request.is_request_of(customer, store) else None


def _find_served() -> Exchange | None:
    """Find the request of the context, or of the MCP tool that is called where that one has ended."""
    request = find_request()
    if request is None or request.is_settled:
        return _find_mcp_request() or request
    return request


def _drop_copy(request: Exchange | None) -> Exchange | None:
    return None if request is None or request.is_of_parent else request


def _find_mcp_request() -> Exchange | None:
    """Find the request of the tool that runs.

    The MCP SDK before 2.0 runs all tools of a session in the context of the session's first request.
    """
    context: ContextVar[Any] | None = getattr(modules.get("mcp.server.lowlevel.server"), "request_ctx", None)
    request = getattr(None if context is None else context.get(None), "request", None)
    return _drop_copy(getattr(request, "scope", {}).get(MCP_REQUEST))


def _thread_advice() -> str:
    """Advise a thread, which has the request's context only if it was handed over."""
    try:
        get_running_loop()
    except RuntimeError:
        return (
            ". If a thread of this request called it: loop.run_in_executor() and pools do not pass on the"
            " request's context; asyncio.to_thread(f) does, and so does pool.submit(copy_context().run, f) of"
            " contextvars"
        )
    return ""


T = TypeVar("T")

_OBJECT_HINT: Final = (
    "nothing is counted; give the response as the SDK returns it. For with_raw_response and "
    "with_streaming_response give the result of parse()"
)
_STREAM_HINT: Final = (
    "nothing is counted; give tap() the SDK's own stream, whose chunks have usage, not only its text; or "
    "give record_usage() the SDK's final object: get_final_message() of Anthropic's, get_final_completion() "
    "of OpenAI's, the result of a run of pydantic-ai"
)


def record_usage(obj: object) -> None:
    """Count the token usage that a language model's answer reports, for the current request.

    It is never refused, is billed by the request's outcome, and may be called from synchronous and
    asynchronous code and from background tasks, on any route. An answer that is reported several times, or
    is read off the response as well, counts once.

    Args:
        obj: what :func:`meterkit.usage_of` can read. Of anything else nothing is counted, and a warning is
            logged.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    request = require_exchange("record_usage()")
    with ErrorGuard(lambda error: request.warn(f"record_usage() could not count an object: {error}")):
        report = read_report(obj)
        if not request.update_calls(lambda calls: calls.reports.take(report)):
            kind = type(obj).__name__
            request.warn(f"record_usage() found no token usage in an object of type {kind}: {_OBJECT_HINT}")


def tap(
    stream: AsyncIterable[T] | Iterable[T] | AbstractAsyncContextManager[AsyncIterable[T]],
) -> StreamTap[T]:
    """Watch the stream of a language model's answer, and count its token usage for the current request.

    ``async for chunk in tap(stream)``, or ``for chunk in tap(stream)``: the chunks are the stream's own. What
    was used counts when the stream ends, and also where it is given up before: then what was generated by
    then is estimated, unless the provider has reported it. See :func:`record_usage` for the rest.

    Args:
        stream: what the provider's SDK returned, asynchronous or not, or an asynchronous context manager of
            it; or the bytes, texts or lines of an answer as an HTTP client gives them. If no usage can be
            read, a warning is logged.

    Raises:
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    request, key = require_exchange("tap()"), object()
    found = StreamTap(
        stream,
        report=partial(_count_tap, request, key),
        unread=partial(_warn_of_empty_stream, request),
        input_tokens=partial(request.update_calls, LlmCalls.input_tokens),
    )
    request.open_tap(key, found)
    return found


def _count_tap(request: Exchange, key: object, calls: tuple[CallUsage, ...]) -> None:
    # Called when a stream ends or is collected: no caller could handle an error there.
    with ErrorGuard(lambda error: request.warn(f"what a tapped stream used could not be counted: {error}")):
        request.warn_of_lost(calls)
        if calls:
            request.update_calls(lambda seen: seen.add_tap(key, calls))


def _warn_of_empty_stream(request: Exchange, kind: str) -> None:
    request.warn(f"tap() found no token usage in a stream of type {kind}: {_STREAM_HINT}")
