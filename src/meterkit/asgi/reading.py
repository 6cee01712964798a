"""The usage of language models, read off one response as it passes; its request kept for an estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.asgi.remarks import Contained
from meterkit.asgi.usage import CallUsage, ResponseReader, cut_short, estimate_input, estimate_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message

    from meterkit.asgi.body import BufferedBody
    from meterkit.asgi.usage import InputEstimator

__all__ = ["BODY_BYTES_MAX", "Reading"]

BODY_BYTES_MAX: Final = 1 << 20
"""How much of a request's body is kept."""

_UNREADABLE: Final = CallUsage(source="missing", notes=("unreadable",))


class Reading:
    """Reads along what the app sends, and what it receives; neither is changed or delayed by it.

    Args:
        usage: the route's word.
        complain: takes what went wrong within the reader; the app never hears of it.
        body: the request's, where it was read before.
        estimate: what measures the input of a client that does not wait for the usage.
    """

    __slots__ = (
        "_body",
        "_broken",
        "_buffered",
        "_complain",
        "_contained",
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
        self._contained = Contained(self._break)
        self._reader: ResponseReader | None = None
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
        with self._contained:
            self._reader = ResponseReader.open(
                self._usage, status=message["status"], headers=message.get("headers", ()), estimate=True
            )

    def see(self, body: bytes) -> None:
        """Read a piece of the response's body."""
        reader = self._reader
        if reader is not None and body:
            with self._contained:
                reader.feed(body)

    def input_tokens(self) -> int:
        """Estimated tokens of the request, at least 1; 0 where nobody asked before the response was over."""
        body, self._body = self._body, None
        if body is not None:
            known = self._buffered
            head, size = (bytes(body), self._size) if known is None else (known.head, known.size)
            with self._contained:
                self._input_tokens = 1
                self._input_tokens = max(1, estimate_request(head, size=size, estimate=self._estimate))
        return self._input_tokens

    def close(self, *, complete: bool, gone: bool) -> tuple[CallUsage, ...]:
        """What the calls in the response used.

        Args:
            complete: whether it was sent to its end.
            gone: whether the client hung up before: what it has not waited for is estimated.
        """
        reader, self._reader = self._reader, None
        calls: tuple[CallUsage, ...] = ()
        output_tokens = 0
        if reader is not None:
            with self._contained:
                calls = reader.close(complete=complete)
                output_tokens = reader.estimated_output_tokens
        if self._broken:
            calls = (_UNREADABLE,) if gone else ()
        if gone:
            return cut_short(calls, input_tokens=self.input_tokens(), output_tokens=output_tokens)
        self._body = None
        return calls

    def _break(self, error: str) -> None:
        self._reader = None
        self._broken = True
        self._complain(f"reading token usage off a response failed, which counts nothing: {error}")
