"""Helpers of proxies: ask a provider for the usage of a stream, and stop it when the client leaves.

Servers that speak OpenAI's Chat Completions report the usage of a stream only where they are asked to, in a
chunk of its own at the end. A proxy asks for it whatever its client asked, so that the stream can be billed,
and takes the chunk out again for clients that do not expect it.
"""

from __future__ import annotations

from asyncio import FIRST_COMPLETED, gather, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

from starlette.requests import ClientDisconnect

from llm_usage.json_values import table
from llm_usage.plain_values import instance_members, is_body
from llm_usage.usage_chunk_filter import UsageChunkFilter, reports_only_usage
from meterkit.asgi.context import require_exchange, tap
from meterkit.asgi.llm_calls import LlmCalls
from meterkit.cancellation import start_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping

    from starlette.types import Receive

__all__ = ["Restore", "RestoredStream", "UsageRequest", "ask_for_usage", "stop_on_disconnect"]

T = TypeVar("T")


class UsageRequest(NamedTuple):
    """Result of :func:`ask_for_usage`.

    Attributes:
        body: the request for the provider.
        restore: wraps the stream that it responds with.
    """

    body: dict[str, Any]
    restore: Restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """Counts the usage of a provider's stream, and gives the stream back as the client asked for it.

    Args:
        hides: whether the client did not ask for the chunk that reports usage.
    """

    hides: bool

    def __call__(self, stream: AsyncIterable[T] | Iterable[T]) -> RestoredStream[T]:
        """Wrap a stream; its usage counts as with :func:`meterkit.tap`.

        Args:
            stream: the SDK's chunks, or the decoded bytes, texts or lines of an HTTP client, asynchronous or
                not.

        Raises:
            MeterkitError: outside of a request that MeterMiddleware has decided.
        """
        return RestoredStream(stream, hides=self.hides)


def ask_for_usage(body: Mapping[str, Any], *, supported: bool = True) -> UsageRequest:
    """Ask the provider to report the usage of a stream, also if the client did not ask.

    ``body, restore = ask_for_usage(body)``: send that body to the provider, and pass on ``restore(stream)``
    in the place of the stream that it answers with. A request that is no stream, or asks for usage itself,
    stays as it is.

    Args:
        body: a request of OpenAI's Chat Completions or Completions; it is not changed.
        supported: False for servers that refuse ``stream_options``: then the body stays as it is too, and
            the usage of a stream that reports none is estimated.
    """
    asked = dict(body)
    options = asked.get("stream_options")
    given = cast("dict[str, Any]", options or {})
    is_stream = asked.get("stream") is True and isinstance(options, dict | None)
    hides = supported and is_stream and given.get("include_usage") is not True
    if hides:
        asked["stream_options"] = {**given, "include_usage": True}
    return UsageRequest(asked, Restore(hides=hides))


async def stop_on_disconnect(receive: Receive, call: Awaitable[T]) -> T:
    """Await a call to a model, and cancel it when the client of the current request disconnects.

    Where the route has ``usage``, the prompt of a cancelled call is billed by estimate, unless usage was
    reported. A call that had ended by then gives its result.

    Args:
        receive: of the request, as ``request.receive``; its body has been read.
        call: such as ``provider.send(asked, stream=True)``; it runs in a task of its own.

    Raises:
        ClientDisconnect: the client left before the call had ended.
        MeterkitError: outside of a request that MeterMiddleware has decided.
    """
    found = require_exchange("stop_on_disconnect()")
    working, leaving = start_task(_result_of(call)), start_task(_read_disconnect(receive))
    try:
        await wait((working, leaving), return_when=FIRST_COMPLETED)
    finally:
        leaving.cancel()
        working.cancel()
        await gather(working, leaving, return_exceptions=True)
        if working.cancelled():
            found.update_calls(LlmCalls.estimate_cancelled_call)
    if working.cancelled():
        raise ClientDisconnect
    return working.result()


async def _result_of(call: Awaitable[T]) -> T:
    return await call


async def _read_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RestoredStream(Generic[T]):
    """Stream of a provider, without the usage that its client did not ask for; see :class:`Restore`.

    Objects and lines pass as they are. Bytes and texts pass event by event: one that is cut is held back
    until the rest of it has come, at most 64 KiB.
    """

    def __init__(self, stream: AsyncIterable[T] | Iterable[T], *, hides: bool) -> None:
        self._tap = tap(stream)
        self._filter = UsageChunkFilter() if hides else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        async for chunk in self._tap:
            if (kept := self._filter_chunk(chunk)) is not None:
                return kept
        if (rest := self._flush()) is None:
            raise StopAsyncIteration
        return rest

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        for chunk in self._tap:
            if (kept := self._filter_chunk(chunk)) is not None:
                return kept
        if (rest := self._flush()) is None:
            raise StopIteration
        return rest

    async def aclose(self) -> None:
        """Count what is known by now, and close the stream where it can be closed."""
        await self._tap.aclose()

    def _filter_chunk(self, chunk: T) -> T | None:
        """Filter a chunk for the client; None: the client gets nothing."""
        hidden = self._filter
        if hidden is None:
            return chunk
        if is_body(chunk):
            return cast("T | None", hidden.pass_on(chunk))
        held: Mapping[str, Any] = table(chunk) or instance_members(chunk)
        return None if reports_only_usage(held) else chunk

    def _flush(self) -> T | None:
        return None if self._filter is None else cast("T | None", self._filter.flush())
