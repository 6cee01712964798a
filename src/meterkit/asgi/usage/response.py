"""Reading the usage off one response as it passes by."""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Final, Protocol

from meterkit.asgi.usage.apis import BY_NAME
from meterkit.asgi.usage.bedrock import BEDROCK
from meterkit.asgi.usage.blocks import Gate
from meterkit.asgi.usage.decoding import Inflate
from meterkit.asgi.usage.document import Document
from meterkit.asgi.usage.estimate import tokens_of_bytes, torn_text_bytes
from meterkit.asgi.usage.eventstream import EventStream
from meterkit.asgi.usage.ndjson import Ndjson
from meterkit.asgi.usage.observer import Observer
from meterkit.asgi.usage.repeats import Repeats
from meterkit.asgi.usage.shape import dig, load, table
from meterkit.asgi.usage.sse import Sse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.asgi.usage.figures import CallUsage, Note

__all__ = ["ResponseReader"]

_NDJSON: Final = frozenset(
    {
        b"application/x-ndjson",
        b"application/ndjson",
        b"application/jsonl",
        b"application/jsonlines",
        b"application/x-jsonlines",
        b"application/stream+json",
    }
)
_EVENT_STREAM: Final = b"application/vnd.amazon.eventstream"
_PLAIN: Final = (b"", b"text/plain")
_IDENTITY: Final = (b"", b"identity")
_DEFLATED: Final = (b"gzip", b"x-gzip", b"deflate")
_DONE: Final = b"[DONE]"
_DONE_BYTES_MAX: Final = 16
_BODILESS: Final = (204, 205)
_OK: Final = range(200, 300)


class _Framing(Protocol):
    def feed(self, chunk: bytes) -> None: ...
    def close(self) -> None: ...


class ResponseReader:
    """Reads what one response reports; make one with :meth:`open`.

    It keeps no more than 8 MiB of a JSON document, and 1 MiB of a stream. What it cannot read it says so of:
    a call is then ``missing``, with a note, and never 0.
    """

    __slots__ = (
        "_calls",
        "_corrupt",
        "_deaf",
        "_declared",
        "_document",
        "_fed",
        "_framing",
        "_gate",
        "_inflate",
        "_measures",
        "_observer",
        "_quiet",
        "_repeats",
        "_stream",
        "_torn",
        "_unreadable",
    )

    def __init__(self, usage: str, kind: bytes, coding: bytes, *, estimate: bool) -> None:
        # Amazon's event stream is Bedrock's, whichever way it was asked for.
        apis = (BEDROCK,) if kind == _EVENT_STREAM else BY_NAME[usage]
        self._declared = usage != "auto" or kind == _EVENT_STREAM
        self._observer = Observer(apis, declared=self._declared, estimate=estimate)
        self._gate = Gate()
        self._repeats = Repeats()
        self._deaf = coding not in _IDENTITY and coding not in _DEFLATED
        self._measures = False
        self._fed = self._quiet = self._unreadable = self._corrupt = False
        self._document: Document | None = None
        self._stream: EventStream | None = None
        self._framing = self._framing_of(kind)
        self._inflate = Inflate(self._take) if coding in _DEFLATED else None
        self._calls: tuple[CallUsage, ...] | None = None
        self._torn = b""

    @classmethod
    def open(
        cls, usage: str, *, status: int, headers: Iterable[tuple[bytes, bytes]], estimate: bool = False
    ) -> ResponseReader | None:
        """A reader for a response that begins.

        Args:
            usage: the route's word: ``auto`` or an API's name.
            status: the response's status.
            headers: the response's headers.
            estimate: whether to measure the text of a stream, for :attr:`estimated_output_tokens`.

        Returns:
            None where nothing can be read here: the status is not 2xx, or the content is of another type.
        """
        if usage == "none" or status not in _OK or status in _BODILESS:
            return None
        kind = coding = b""
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
            elif lowered == b"content-encoding":
                coding = value.strip().lower()
        if not _is_readable(kind) and (usage == "auto" or kind not in _PLAIN):
            return None
        return cls(usage, kind, coding, estimate=estimate)

    @property
    def output_bytes_seen(self) -> int:
        """UTF-8 bytes of the model's text so far; 0 unless opened with ``estimate``."""
        return self._observer.text_bytes

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no figures cover; 0 unless opened with ``estimate``."""
        tokens = self._observer.estimated_output_tokens
        if self._torn and self._observer.wants_text:
            tokens += tokens_of_bytes(torn_text_bytes(self._torn))
        return tokens

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body; never raises."""
        if not chunk:
            return
        self._fed = True
        if self._deaf:
            return
        if self._inflate is None:
            self._take(chunk)
        else:
            self._inflate.feed(chunk)

    def close(self, *, complete: bool) -> tuple[CallUsage, ...]:
        """What the calls in the response used; none where it is no language model's. Never raises.

        Args:
            complete: False where the response ended early: figures that were not the last are partial then.
        """
        if self._calls is None:
            # What was cut off cannot be read, and that is nothing to remark on.
            self._quiet = not complete
            if self._document is not None and self._quiet:
                self._torn = self._document.torn()
            if self._framing is not None:
                self._framing.close()
            self._calls = self._result(complete=complete)
            if self._document is not None and self._document.array is None and _is_told(self._calls):
                self._torn = b""  # It was whole, but for the end of the response.
        return self._calls

    def _result(self, *, complete: bool) -> tuple[CallUsage, ...]:
        if not self._fed:
            return ()
        if self._deaf:
            return (self._observer.missing({"encoding"}),)
        calls = self._observer.close(complete=complete, notes=self._notes())
        document = self._document
        if not calls and document is not None and document.too_large and document.promising:
            calls = (self._observer.missing({"too_large"}),)
        if not calls and not complete and self._observer.untold and (document is None or self._torn):
            # Cut off before it could say what it is; the route says that such answers are a model's.
            calls = (self._observer.missing({"ended_early"}),)
        return calls

    def _notes(self) -> list[Note]:
        inflate, document = self._inflate, self._document
        found: dict[Note, bool] = {
            "corrupt": self._corrupt
            or (self._stream is not None and self._stream.corrupt)
            or (inflate is not None and inflate.corrupt),
            "skipped_event": self._gate.skipped > 0,
            "too_large": (inflate is not None and inflate.too_large)
            or (document is not None and document.too_large),
            "unreadable": self._unreadable,
        }
        return [note for note, applies in found.items() if applies]

    def _take(self, data: bytes) -> None:
        if self._framing is None:
            data = data.lstrip()
            if not data:
                return
            self._framing = (
                self._json() if data[:1] in (b"{", b"[") else Sse(self._event, self._gate, self._take_all)
            )
        self._framing.feed(data)

    def _framing_of(self, kind: bytes) -> _Framing | None:
        """How the body is cut; None where its first byte has to tell."""
        if kind == b"text/event-stream":
            return self._sse()
        if kind in _NDJSON:
            return Ndjson(self._event, self._gate)
        if kind == _EVENT_STREAM:
            self._stream = EventStream(self._frame, self._gate)
            return self._stream
        return None if kind in _PLAIN else self._json()

    def _sse(self) -> Sse:
        return Sse(self._event, self._gate, self._take_all)

    def _json(self) -> Document:
        self._document = Document(self._event, self._gate, unseen=self._declared)
        return self._document

    def _event(self, data: bytes) -> None:
        """One event of a stream, one item of an array, or a whole document."""
        if len(data) <= _DONE_BYTES_MAX and data.strip() == _DONE:
            self._observer.end()
            return
        self._observe(data, None)

    def _take_all(self, events: bytes) -> bool:
        """Several events at once, if they say nothing but their text."""
        measured = self._repeats.measure_all(events) if self._measures else None
        if measured is None:
            return False
        self._observer.add_text(measured)
        return True

    def _frame(self, headers: Mapping[str, str], payload: bytes) -> None:
        """One frame of an Amazon event stream."""
        if headers.get(":message-type") in ("exception", "error"):
            self._observer.fail()
            return
        name = headers.get(":event-type", "")
        if name == "chunk":
            try:
                inner = dig(load(payload), ("bytes",))
                payload = b64decode(inner, validate=True) if isinstance(inner, str) else b""
            except ValueError:
                self._unreadable = True
                return
        if self._gate.opens(payload):
            self._observe(payload, None if name == "chunk" else name)

    def _observe(self, data: bytes, name: str | None) -> None:
        observer = self._observer
        is_repeatable = self._measures and name is None
        if is_repeatable and (measured := self._repeats.measure(data)) is not None:
            observer.add_text(measured)
            return
        try:
            event = table(load(data))
        except ValueError:
            self._unreadable |= not self._quiet
            return
        if event is None:
            return
        before = observer.text_bytes
        told = observer.observe(event if name is None else {name: event})
        if is_repeatable and not told and observer.text_bytes > before:
            self._repeats.learn(data, observer.text_bytes - before)
        if observer.decided:
            self._gate.all = self._measures = observer.wants_text
            if observer.foreign and self._document is not None and self._document.array is not None:
                self._document.array.stopped = True


def _is_told(calls: Iterable[CallUsage]) -> bool:
    return any(call.source != "missing" for call in calls)


def _is_readable(kind: bytes) -> bool:
    return (
        kind in (b"text/event-stream", b"application/json", _EVENT_STREAM)
        or kind in _NDJSON
        or kind.endswith(b"+json")
    )
