"""The usage of language models, read off one response as it passes; its request kept for an estimate."""

from __future__ import annotations

from asyncio import sleep
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final

from meterkit.asgi.remarks import Contained, described
from meterkit.asgi.usage import (
    PIECE_BYTES,
    CallUsage,
    ResponseReader,
    asks_model,
    billed_input,
    estimate_input,
    estimate_request,
    filled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Message

    from meterkit.asgi.body import BufferedBody
    from meterkit.asgi.usage import InputEstimator

__all__ = ["BODY_BYTES_MAX", "Reading"]

BODY_BYTES_MAX: Final = 1 << 20
"""How much of a request's body is kept."""

# When others are let run while a large message is read.
_PARTS_MAX: Final = 4
_REST_EVERY_S: Final = 0.002
_UNREADABLE: Final = CallUsage(source="missing", notes=("unreadable",))


class Reading:
    """Reads along what the app sends, and what it receives; neither is changed or delayed by it.

    Args:
        usage: the route's word.
        complain: takes what went wrong within the reader; the app never hears of it.
        body: the request's, where it was read before.
        estimate: what measures the input where no usage is reported; the default counts less for a bill.
    """

    __slots__ = (
        "_backlog",
        "_body",
        "_broken",
        "_buffered",
        "_complain",
        "_estimate",
        "_input_tokens",
        "_reader",
        "_size",
        "_usage",
    )

    def __init__(
        self,
        usage: str,
        *,
        complain: Callable[[str], None],
        body: BufferedBody | None = None,
        estimate: InputEstimator = estimate_input,
    ) -> None:
        self._usage = usage
        self._complain = complain
        self._reader: ResponseReader | None = None
        self._backlog: deque[Iterator[None]] = deque()
        self._broken = False
        self._estimate = estimate
        self._buffered = body
        self._body: bytearray | None = bytearray()
        self._size = 0
        self._input_tokens = 0

    def hear(self, message: Message) -> None:
        """Keep what the app is about to receive of the request's body, up to a bound."""
        body = message.get("body")
        if body and self._body is not None and self._buffered is None:
            self._size += len(body)
            if len(self._body) < BODY_BYTES_MAX:
                self._body += body[: BODY_BYTES_MAX - len(self._body)]

    def begin(self, message: Message) -> None:
        """Look at the head of the response."""
        with self._contained():
            self._reader = ResponseReader.open(
                self._usage, status=message["status"], headers=message.get("headers", ()), estimate=True
            )

    def see(self, body: bytes) -> bool:
        """Read a piece of the response's body.

        Returns:
            Whether some of it is left to :meth:`catch_up`: it is too much to be read at once.
        """
        reader = self._reader
        if reader is None or not body:
            return False
        try:
            if len(body) <= PIECE_BYTES and not reader.unpacks:
                reader.feed(body)
                return False
        except Exception as error:  # noqa: BLE001 - Whatever goes wrong here, the app never hears of it.
            self._break(described(error))
            return False
        self._backlog.append(reader.pieces(body))
        return True

    async def catch_up(self) -> None:
        """Read what was left, letting others run in between."""
        rested = monotonic()
        for read, _ in enumerate(iter(self._read_on, False), 1):
            if read % _PARTS_MAX == 0 or monotonic() - rested > _REST_EVERY_S:
                await sleep(0)
                rested = monotonic()

    def _read_on(self) -> bool:
        """Read a part of what was left; whether there was any."""
        backlog = self._backlog
        with self._contained():
            while backlog:
                for _ in backlog[0]:
                    return True
                backlog.popleft()
        return False

    def input_tokens(self) -> int:
        """Estimated tokens of the request, at least 1; 0 where nobody asked before the response was over."""
        body, self._body = self._body, None
        if body is not None:
            head, size = self._request(body)
            with self._contained():
                self._input_tokens = 1
                if self._estimate is estimate_input:
                    found = billed_input(head, size=size)
                else:
                    found = estimate_request(head, size=size, estimate=self._estimate)
                self._input_tokens = max(1, found)
        return self._input_tokens

    def close(self, *, complete: bool, gone: bool) -> tuple[CallUsage, ...]:
        """What the calls in the response used: estimated where that was not reported, but for failures.

        Args:
            complete: whether it was sent to its end.
            gone: whether the client hung up before.
        """
        while self._read_on():
            pass
        reader, self._reader = self._reader, None
        calls: tuple[CallUsage, ...] = ()
        output_tokens = 0
        if reader is not None:
            with self._contained():
                calls = reader.close(complete=complete, asked=self._asked)
                output_tokens = reader.estimated_output_tokens
        if self._broken:
            calls = (_UNREADABLE,) if gone else ()
        if gone or complete:
            calls = filled(
                calls, input_tokens=self.input_tokens, output_tokens=output_tokens, at_least=int(gone)
            )
        self._body = None
        # It holds the request, which holds this: let go of, neither is left to the garbage collector.
        self._complain = _ignore
        return calls

    def _request(self, body: bytearray) -> tuple[bytes, int]:
        """The beginning of the request's body, and its size."""
        known = self._buffered
        return (bytes(body), self._size) if known is None else (known.head, known.size)

    def _asked(self) -> bool:
        return self._body is not None and asks_model(self._request(self._body)[0])

    def _contained(self) -> Contained:
        return Contained(self._break)

    def _break(self, error: str) -> None:
        self._reader = None
        self._backlog.clear()
        self._broken = True
        self._complain(f"reading token usage off a response failed, which counts nothing: {error}")


def _ignore(_: str) -> None:
    """Nobody is there to hear it any more."""
