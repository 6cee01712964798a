"""Watching the stream of a provider's SDK while the app uses it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, cast

from llm_usage.body_reader import BodyReader
from llm_usage.call_usage import CallUsage, fill_estimates
from llm_usage.objects import OBJECT_APIS, events_of
from llm_usage.observer import UsageObserver
from llm_usage.plain_values import is_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")

_LACKING: Final = ("missing", "partial")


class StreamTap(Generic[T]):
    """Passes on the very same chunks of a stream, and reports what they say about usage, once.

    Reported is when the stream ends, raises or is cancelled, with :meth:`finish`, and at the latest when
    the tap is collected: a generator that is closed in the middle of its loop drops it at once.

    Args:
        stream: what the SDK returned, asynchronous or not, or an asynchronous context manager of it; or the
            bytes, texts or lines of an HTTP client.
        report: takes what was used; must not raise.
        unread: takes the type of the chunks where they came to their end and nothing of usage could be
            recognised in any of them; must not raise.
        input_tokens: estimates the input. If given, figures that are missing because no code read
            the stream to its end, or because it ended without any, are estimates; must not raise.
    """

    def __init__(
        self,
        stream: AsyncIterable[T] | Iterable[T] | AbstractAsyncContextManager[AsyncIterable[T]],
        *,
        report: Callable[[tuple[CallUsage, ...]], None],
        unread: Callable[[str], None] | None = None,
        input_tokens: Callable[[], int] | None = None,
    ) -> None:
        self._stream = stream
        self._report: Callable[[tuple[CallUsage, ...]], None] | None = report
        self._unread = unread
        self._input_tokens = input_tokens
        self._iterator: Any = None
        self._contexts = AsyncExitStack()
        self._observer = UsageObserver(OBJECT_APIS, declared=False)
        self._body = BodyReader()
        self._kind: str | None = None

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no figures cover."""
        return self._observer.estimated_output_tokens + self._body.estimated_output_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            if self._iterator is None:
                self._iterator = aiter(await self._enter_stream())
            chunk: T = await anext(cast("AsyncIterator[T]", self._iterator))
        except BaseException as error:
            self._report_end(error, StopAsyncIteration)
            await self._contexts.aclose()
            raise
        self._observe(chunk)
        return chunk

    async def _enter_stream(self) -> AsyncIterable[T]:
        """The stream, once its context is entered: pydantic-ai's ``run_stream_events`` returns only that."""
        stream: Any = self._stream
        if hasattr(stream, "__aenter__") and not hasattr(stream, "__aiter__"):
            stream = await self._contexts.enter_async_context(stream)
        return cast("AsyncIterable[T]", stream)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._iterator is None:
            self._iterator = iter(cast("Iterable[T]", self._stream))
        try:
            chunk: T = next(cast("Iterator[T]", self._iterator))
        except BaseException as error:
            self._report_end(error, StopIteration)
            raise
        self._observe(chunk)
        return chunk

    async def aclose(self) -> None:
        """Report, and close the stream where it can be closed."""
        self.finish()
        await self._contexts.aclose()
        close = getattr(self._stream, "aclose", None) or getattr(self._stream, "close", None)
        closing = close() if callable(close) else None
        if isawaitable(closing):
            await closing

    def finish(self) -> None:
        """Report the usage so far of a stream that is not read to its end, unless that was done already."""
        self._report_once(complete=False, given_up=True)

    def snapshot(self, input_tokens: Callable[[], int]) -> tuple[CallUsage, ...]:
        """Usage so far, as if the stream were given up now; it may go on. None if it was reported already.

        Args:
            input_tokens: estimates the input.
        """
        if self._report is None:
            return ()
        calls = self._observer.close(complete=False, notes=()) + self._body.snapshot()
        return self._estimate_given_up(calls, input_tokens)

    def _report_end(self, error: BaseException, end: type[Exception]) -> None:
        self._report_once(complete=isinstance(error, end), given_up=not isinstance(error, Exception))

    def _report_once(self, *, complete: bool, given_up: bool) -> None:
        report, self._report = self._report, None
        if report is not None:
            calls = self._observer.close(complete=complete, notes=()) + self._body.close(complete=complete)
            output_tokens = self.estimated_output_tokens
            # After a failure of the provider, unreported tokens are not billed.
            lacks = complete and output_tokens > 0 and bool(calls) and calls[-1].source in _LACKING
            if given_up:
                calls = self._estimate_given_up(calls, self._input_tokens)
            elif lacks and self._input_tokens is not None:
                calls = fill_estimates(calls, input_tokens=self._input_tokens, output_tokens=output_tokens)
            if complete and not calls and self._kind is not None and self._unread is not None:
                self._unread(self._kind)
            report(calls)

    def _estimate_given_up(
        self, calls: tuple[CallUsage, ...], input_tokens: Callable[[], int] | None
    ) -> tuple[CallUsage, ...]:
        """Estimate what the calls of a stream lack that is not read to its end."""
        if self._iterator is not None and self._kind is None:
            calls = (CallUsage(source="missing"),)  # The call was made: its prompt was read.
        if input_tokens is None:
            return calls
        return fill_estimates(
            calls, input_tokens=input_tokens, output_tokens=self.estimated_output_tokens, at_least=1
        )

    def _observe(self, chunk: T) -> None:
        if self._kind is None:
            self._kind = type(chunk).__name__
        if is_body(chunk):
            self._body.feed(chunk)
            return
        for event in events_of(chunk):
            self._observer.observe(event)

    def __del__(self) -> None:
        # Absent where the constructor raised.
        if getattr(self, "_report", None) is not None:
            self.finish()
