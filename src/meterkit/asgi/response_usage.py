"""Reader of the usage of language models in a response, as it passes."""

from __future__ import annotations

from asyncio import CancelledError, sleep
from collections import deque
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Final

from llm_usage import CallUsage, ResponseReader, read_request
from llm_usage.call_usage import fill_estimates, is_pending
from llm_usage.estimate import BILLED_BYTES_PER_TOKEN, asks_model, billed_input, speech_call
from llm_usage.framing.content_codings import PIECE_BYTES
from llm_usage.framing.content_types import is_sound
from llm_usage.usage_fields import FieldsReader
from meterkit.asgi.logs import CAUSES, ErrorGuard, describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.types import Message

    from llm_usage.estimate import InputEstimator
    from llm_usage.framing.incremental import Work
    from meterkit.asgi.buffered_body import KeptRequest
    from meterkit.catalog import Route

# How long a message is read before other tasks run; one more piece of work may have begun by then.
_PAUSE_EVERY_S: Final = 0.000_5
# How long a cancelled request waits until its response is read: half a second or more of reading.
_PAUSES_MAX: Final = 1_000
# How much is read where no task can wait: some milliseconds.
_LAST_STEPS_MAX: Final = 32
_UNREADABLE: Final = CallUsage(source="missing", notes=("unreadable",))


class ResponseUsage:
    """Reads the usage in a response, which it neither changes nor delays.

    Args:
        route: says whose usage is read, and at which paths.
        request: what the app receives.
        complain: logs an error of the reader, which the app never sees.
        estimate: the app's own estimator of the input, for responses without usage; None: it has none.
        is_fetched: whether the response is a stored one, unless the request's body asks a model.

    Attributes:
        is_fetched: whether the response is a stored one, whose figures were counted before.
        skip_repeats: tries to take a piece in place of :meth:`read`, if it repeats the one before.
        figures: the quantities found at the paths of ``usage_fields``, by meter, once it is closed.
        unread_figure: the path of a token figure that ``usage`` does not read, once it is closed.
    """

    __slots__ = (
        "_at",
        "_backlog",
        "_begin_piece",
        "_broken",
        "_complain",
        "_estimate",
        "_fields",
        "_input_tokens",
        "_is_behind",
        "_is_sound",
        "_piece_bytes",
        "_reader",
        "_request",
        "_route",
        "_work",
        "figures",
        "is_fetched",
        "skip_repeats",
        "unread_figure",
    )

    def __init__(
        self,
        route: Route,
        request: KeptRequest,
        *,
        complain: Callable[[str], None],
        estimate: InputEstimator | None = None,
        is_fetched: bool = False,
    ) -> None:
        self._route = route
        self.is_fetched = is_fetched
        self._fields: FieldsReader | None = None
        self.figures: Mapping[str, int] = {}
        self.unread_figure: str | None = None
        self._complain = complain
        self._reader: ResponseReader | None = None
        self._backlog: deque[bytes] = deque()
        self._at = self._piece_bytes = 0
        self._work: Work | None = None
        self._broken = self._is_behind = self._is_sound = False
        self.skip_repeats: Callable[[bytes], bool] = _skip_nothing
        # Reads a piece and returns the work that takes time; None: nothing is read.
        self._begin_piece: Callable[[bytes], Work | None] | None = None
        self._estimate = estimate
        self._request: KeptRequest | None = request
        self._input_tokens = 0

    def begin(self, message: Message) -> None:
        """Open the reader for the head of the response."""
        status, headers, fields = message["status"], message.get("headers", ()), self._route.usage_fields
        with self._guard():
            # A client chooses the method, and some handlers take any.
            self.is_fetched = self.is_fetched and not self.asks_model()
            if fields and not self.is_fetched:
                self._fields = FieldsReader.open(fields, status=status, headers=headers)
            reader = self._reader = ResponseReader.open(self._route.usage, status=status, headers=headers)
            if reader is None or reader.is_opaque:
                self._is_sound = self._route.usage != "fields" and is_sound(status, headers)
            if self._fields is not None:
                self._begin_piece = self._begin_both
            elif reader is not None:
                self._begin_piece = reader.read

    def read(self, body: bytes) -> bool:
        """Read a piece of the response's body.

        Returns:
            Whether some of it is left to :meth:`catch_up`: it is too much to be read at once.
        """
        self.skip_repeats = _skip_nothing
        begin_piece, reader = self._begin_piece, self._reader
        if not body or begin_piece is None:
            return False
        if self._is_behind or len(body) > PIECE_BYTES:
            self._backlog.append(body)
            self._is_behind = True
            return True
        try:
            work = begin_piece(body)
        except Exception as error:  # noqa: BLE001 - the app never sees an error of the reader
            self._stop_reading(describe_error(error))
            return False
        if work is None:
            if self._fields is None and reader is not None and reader.is_repeating:
                self.skip_repeats = reader.skip_repeats
            return False
        self._work, self._piece_bytes = work, len(body)
        self._is_behind = True
        return True

    def _begin_both(self, piece: bytes) -> Work | None:
        """Read usage and fields of a piece of the body; return the work that takes time."""
        reader, fields = self._reader, self._fields
        work = None if reader is None else reader.read(piece)
        if fields is None:
            return work
        more = fields.read(piece)
        return chain(work, more) if work is not None and more is not None else work or more

    async def catch_up(self, *, complete: bool = False) -> None:
        """Read the rest, with pauses for other tasks. A cancelling task waits for that, within a bound.

        Args:
            complete: whether the response was sent to its end.
        """
        cancelled: CancelledError | None = None
        pauses = 0
        paused = monotonic()
        while pauses < _PAUSES_MAX and self._read_on(complete=complete):
            if monotonic() - paused > _PAUSE_EVERY_S:
                try:
                    await sleep(0)
                except CancelledError as error:
                    cancelled = error
                pauses += cancelled is not None
                paused = monotonic()
        if cancelled is not None:
            raise cancelled

    def _read_on(self, *, complete: bool = False) -> bool:
        """Do a piece of the work that is left; whether there was any."""
        with self._guard():
            while self._reader is not None or self._fields is not None:
                for _ in self._work or ():
                    return True
                self._work = None
                if self._backlog:
                    self._work = self._begin_next()
                    return True
                if not complete:
                    break
                complete = False
                self._work = chain(
                    () if self._reader is None else self._reader.finish(complete=True),
                    () if self._fields is None else self._fields.finish(),
                )
        self._is_behind = False
        return False

    def _begin_next(self) -> Work | None:
        """Begin to read the next piece of what was left."""
        body, at = self._backlog[0], self._at
        piece = body[at : at + PIECE_BYTES]
        self._at += len(piece)
        self._piece_bytes = len(piece)
        if self._at == len(body):
            self._backlog.popleft()
            self._at = 0
        return None if self._begin_piece is None else self._begin_piece(piece)

    def _unread_bytes(self) -> int:
        begun = 0 if self._work is None else self._piece_bytes
        return begun + sum(map(len, self._backlog)) - self._at

    @property
    def has_text(self) -> bool:
        """Whether a model's text was seen in the response."""
        return self._reader is not None and self._reader.output_bytes_seen > 0

    def input_tokens(self) -> int:
        """Estimated tokens of the request, at least 1; 0 if the response was over before."""
        request, self._request = self._request, None
        if request is not None:
            with self._guard():
                self._input_tokens = 1
                body, size = request.content()
                self._input_tokens = max(1, billed_input(body, size=size, estimate=self._estimate))
        return self._input_tokens

    def close(self, *, complete: bool, gone: bool) -> tuple[CallUsage, ...]:
        """Close the response and return its calls; calls without figures are estimated, except failed ones.

        Args:
            complete: whether it was sent to its end.
            gone: whether the client hung up before.
        """
        unread_tokens = self._read_rest()
        is_cut = gone or (self._is_behind and self._unread_bytes() > 0)
        reader, self._reader, self._begin_piece = self._reader, None, None
        self.skip_repeats = _skip_nothing
        self._close_fields(complete=complete and not is_cut)
        calls: tuple[CallUsage, ...] = ()
        output_tokens = 0
        is_damaged = False
        if reader is not None:
            with self._guard():
                calls = reader.close(complete=complete and not is_cut, asked=self.asks_model)
                output_tokens = reader.estimated_output_tokens + unread_tokens
                self.unread_figure = reader.unread_figure
                is_damaged = reader.is_damaged
        if self._broken:
            calls = (_UNREADABLE,) if gone else ()
        if self._is_sound and (spoken := self._speech_call()) is not None:
            calls = (spoken,)
        elif (gone or complete) and not self._is_job(calls):
            at_least = int(is_cut or (is_damaged and self._has_request_body()))
            calls = fill_estimates(
                calls, input_tokens=self.input_tokens, output_tokens=output_tokens, at_least=at_least
            )
        if not complete:
            self.input_tokens()  # Kept for taps: the generator around one may be closed after the request.
        self._request = None
        # It holds the request, which holds this: without the cycle neither is left to the garbage collector.
        self._complain = _ignore
        return calls

    def _speech_call(self) -> CallUsage | None:
        if self._request is None:
            return None
        with self._guard():
            body, size = self._request.content()
            return speech_call(body, self._route.models) if size <= len(body) else None
        return None

    def _close_fields(self, *, complete: bool) -> None:
        fields, self._fields = self._fields, None
        if fields is None:
            return
        with self._guard():
            self.figures = fields.close()
            if fields.overflowed:
                self._complain(
                    "a response holds more calls than meterkit distinguishes; usage_fields count the first"
                )
            missing = fields.missing()
            if missing and complete:
                why = f": {CAUSES['encoding']}" if fields.is_coded else ""
                self._complain(f"a response has no figure for usage_fields {missing[0]}{why}")

    def _read_rest(self) -> int:
        """Read a bounded part of the rest without a pause; the tokens of the unread rest, extrapolated."""
        if not self._is_behind:
            return 0
        reader, left = self._reader, self._unread_bytes()
        if not left:
            return 0
        before = 0 if reader is None else reader.output_bytes_seen
        unread = left
        for step in range(2 * _LAST_STEPS_MAX):
            if not self._read_on():
                break
            last, unread = unread, self._unread_bytes()
            # A block that was begun is read to its end, so that the length of its text is known.
            if step >= _LAST_STEPS_MAX and unread < last:
                break
        unread = self._unread_bytes()
        if reader is None:
            return 0
        text_bytes = reader.output_bytes_seen - before
        return text_bytes * unread // max(left - unread, self._piece_bytes) // BILLED_BYTES_PER_TOKEN

    def _is_job(self, calls: Sequence[CallUsage]) -> bool:
        """Whether the last call goes on without its client, as its request says or fetches it."""
        if not (calls and is_pending(calls[-1])) or self._request is None:
            return False
        body, size = self._request.content()
        asked = read_request(body) if size <= len(body) else None
        return self.is_fetched or (asked is not None and asked.is_set("background"))

    def _has_request_body(self) -> bool:
        return self._request is not None and self._request.head()[1] > 0

    def asks_model(self) -> bool:
        """Whether the request looks like one to a language model; False once the response is closed."""
        if self._request is None:
            return False
        body, size = self._request.content()
        return asks_model(body, size=size, content_type=self._request.content_type)

    def _guard(self) -> ErrorGuard:
        return ErrorGuard(self._stop_reading)

    def _stop_reading(self, error: str) -> None:
        self._reader = self._fields = self._begin_piece = None
        self.skip_repeats = _skip_nothing
        self._backlog.clear()
        self._work, self._at, self._is_behind = None, 0, False
        self._broken = True
        self._complain(f"reading token usage off a response failed, which counts nothing: {error}")


def _skip_nothing(_: bytes) -> bool:
    """Leave a piece to be read."""
    return False


def _ignore(_: str) -> None:
    """Drop a warning: the response is closed."""
