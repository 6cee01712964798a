"""Reading in bounded pieces of work, so that others can be let run in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

EVENT_BYTES_MAX: Final = 16 << 10
"""Bytes of an event that are kept; a larger one is read as it comes."""

Work: TypeAlias = "Iterator[None]"
"""The remaining work: a generator that pauses after each piece of some tenths of a millisecond."""

Steps: TypeAlias = "Iterator[bool]"
"""A generator that yields where it pauses: whether it needs more bytes to go on."""

Emit: TypeAlias = "Callable[[bytes], Work | None]"
"""Takes an event, or a piece of one; what is left to do with it, None where nothing is."""


class LargeReader(Protocol):
    """Reads what is too large to be kept."""

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of it; what is left to do with them."""
        ...

    def end(self) -> None:
        """It has come to its end, or to that of the response."""


class IncrementalReader:
    """Reads bytes that come in pieces; how it does, a subclass says in ``_run``.

    Attributes:
        corrupt: whether a checksum failed.
    """

    __slots__ = ("_at", "_data", "_is_over", "_steps", "corrupt")

    def __init__(self) -> None:
        # A chunk, and the position to read from.
        self._data = b""
        self._at = 0
        self._is_over = self.corrupt = False
        self._steps = self._run()

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes; what is left to do with them."""
        return self._feed(data)

    def _feed(self, data: bytes) -> Work:
        self._data += data
        for needs_more in self._steps:
            if needs_more:
                self._data, self._at = self._data[self._at :], 0
                return
            yield
        self._data = b""

    def close(self) -> Work:
        """No more bytes come: read what is left."""
        self._is_over = True
        for _ in self._steps:
            yield

    def _run(self) -> Steps:
        """Read from ``_at`` on. What it keeps across a pause is kept in memory: better no data."""
        raise NotImplementedError

    def _has(self, size: int) -> Generator[bool, None, bool]:
        """Whether so many bytes come."""
        while len(self._data) - self._at < size:
            if self._is_over:
                return False
            yield True
        return True


def run_steps(work: Work | None) -> Steps:
    """Do it, with its pauses."""
    for _ in work or ():
        yield False


def feed_large(large: LargeReader, data: bytes) -> Work:
    """Feed all of something to a reader of what is too large to be kept."""
    yield from large.feed(data) or ()
    large.end()


def drain(work: Work | None) -> None:
    """Do it all, without a pause."""
    for _ in work or ():
        pass
