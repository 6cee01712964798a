"""Watching the stream of a provider's SDK while the app uses it."""

from __future__ import annotations

from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

from meterkit.asgi.usage.apis import AUTO
from meterkit.asgi.usage.objects import event_of
from meterkit.asgi.usage.observer import Observer

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

    from meterkit.asgi.usage.figures import CallUsage

__all__ = ["StreamTap"]

T = TypeVar("T")


class StreamTap(Generic[T]):
    """Passes on the very same chunks of a stream, and reports what they say about usage, once.

    Reported is when the stream ends, raises or is cancelled, with :meth:`finish`, and at the latest when
    the tap is let go of: a generator that is closed in the middle of its loop lets go of it at once.

    Args:
        stream: what the SDK returned, asynchronous or not.
        report: takes what was used; must not raise.
        estimate: whether to measure the text, for :attr:`estimated_output_tokens`.
    """

    def __init__(
        self,
        stream: AsyncIterable[T] | Iterable[T],
        *,
        report: Callable[[tuple[CallUsage, ...]], None],
        estimate: bool = False,
    ) -> None:
        self._stream = stream
        self._report: Callable[[tuple[CallUsage, ...]], None] | None = report
        self._iterator: Any = None
        self._observer = Observer(AUTO, declared=False, estimate=estimate)

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no final figures cover; 0 unless ``estimate``."""
        return self._observer.estimated_output_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._iterator is None:
            self._iterator = aiter(cast("AsyncIterable[T]", self._stream))
        try:
            chunk: T = await anext(cast("AsyncIterator[T]", self._iterator))
        except BaseException as error:
            self.finish(complete=isinstance(error, StopAsyncIteration))
            raise
        self._observe(chunk)
        return chunk

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._iterator is None:
            self._iterator = iter(cast("Iterable[T]", self._stream))
        try:
            chunk: T = next(cast("Iterator[T]", self._iterator))
        except BaseException as error:
            self.finish(complete=isinstance(error, StopIteration))
            raise
        self._observe(chunk)
        return chunk

    async def aclose(self) -> None:
        """Report, and close the stream where it can be closed."""
        self.finish()
        close = getattr(self._stream, "aclose", None) or getattr(self._stream, "close", None)
        closing = close() if callable(close) else None
        if isawaitable(closing):
            await closing

    def finish(self, *, complete: bool = False) -> None:
        """Report what is known by now, unless that was done already."""
        report, self._report = self._report, None
        if report is not None:
            report(self._observer.close(complete=complete, notes=()))

    def _observe(self, chunk: T) -> None:
        event = event_of(chunk)
        if event is not None:
            self._observer.observe(event)

    def __del__(self) -> None:
        # Absent where the constructor raised.
        if getattr(self, "_report", None) is not None:
            self.finish()
