"""Usage read off a response as its bytes pass, with its status and headers known."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.event_marks import FigureWatch, may_have_figures, may_report
from llm_usage.framing.content_codings import (
    PIECE_BYTES,
    ContentDecoder,
    make_decoder,
    read_pieces,
)
from llm_usage.framing.content_types import (
    EVENT_STREAM,
    HTML,
    SniffedBody,
    content_of,
    feed_nothing,
    has_answer,
    is_readable,
)
from llm_usage.framing.eventstream import EventStreamReader
from llm_usage.framing.incremental import IncrementalReader, drain, feed_large
from llm_usage.framing.json import JsonReader
from llm_usage.framing.large_json import UNKNOWN, Base64JsonReader, LargeJsonReader
from llm_usage.framing.sse import DONE, EventCallbacks, NdjsonReader, SseReader
from llm_usage.json_values import dig, is_dense, load, table
from llm_usage.known_events import KnownEvents, key_of
from llm_usage.layout import ROOT
from llm_usage.observer import UsageObserver
from llm_usage.providers import BY_NAME, may_be_known
from llm_usage.providers.bedrock import BEDROCK, header_context, header_usage
from llm_usage.repeated_events import RepeatedEvents
from llm_usage.reported_calls import ReportedCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_usage.call_usage import CallUsage, Note
    from llm_usage.framing.content_types import Framing
    from llm_usage.framing.incremental import LargeReader, Steps, Work
    from llm_usage.json_values import Table

# With br and zstd a token of a text takes 2 bytes, as an event of its own 6 to 20: these are on the safe side
# of both for those who are billed.
_CODED_BYTES_PER_TOKEN: Final = 4
_CODED_EVENT_BYTES_PER_TOKEN: Final = 32
# It may be no text at all, but vectors or an image.
_CODED_TOKENS_MAX: Final = 4_096
_AMAZON: Final = b"x-amzn-"
_DONE_BYTES_MAX: Final = 16
_WORDS_OF_BEDROCK: Final = frozenset(word for word, apis in BY_NAME.items() if BEDROCK in apis)
_KNOWN: Final = {word: KnownEvents() for word in BY_NAME}


class _Foreign(IncrementalReader):
    """Takes what is certainly no language model's answer."""

    def _run(self) -> Steps:
        return iter(())


class ResponseReader:
    """Reads what one response reports; make one with :meth:`open`.

    It keeps no more than some 64 KiB, however long the response or a single event of it is. What it cannot
    read it says so of: a call is then ``missing``, with a note, and never 0.

    Attributes:
        is_repeating: whether the last chunk was whole events that repeat an earlier one.
        skip_repeats: then tries to take the next chunk in place of :meth:`read`.
        is_opaque: whether the body is of a type that is not read, such as sound.
        is_damaged: whether some of the body could not be read, once it is closed; not if it is a mere text.
    """

    def __init__(self, usage: str, kind: bytes, coding: bytes) -> None:
        # Amazon's event stream is Bedrock's, for any request.
        word = BEDROCK.name if kind == EVENT_STREAM else usage
        apis = BY_NAME[word]
        self._known = _KNOWN[word]
        self._declared = usage != "auto" or kind == EVENT_STREAM
        self._observer = UsageObserver(apis, declared=self._declared)
        self._repeats = RepeatedEvents(self._observer)
        self.skip_repeats = self._repeats.skip_repeats
        self._decoding: ContentDecoder | None = make_decoder(coding) if coding else None
        # Whether it is in a content coding that cannot be undone.
        self._is_coded = bool(coding) and self._decoding is None
        self._unread_bytes = 0
        self._coded_bytes_per_token = (
            _CODED_BYTES_PER_TOKEN if kind.endswith(b"json") else _CODED_EVENT_BYTES_PER_TOKEN
        )
        self._fed = self._is_cut = self._unreadable = self._selects = False
        self._is_foreign = self._is_text = self.is_opaque = self.is_damaged = False
        self._sse: SseReader | None = None
        self.is_repeating = False
        self._large_json: LargeJsonReader | None = None
        self._large_figure: str | None = None
        self._json: JsonReader | None = None
        self._body: SniffedBody | None = SniffedBody(kind, self._open_reader)
        self._feed_framing: Callable[[bytes], Work | None] = self._body.feed
        self._calls: tuple[CallUsage, ...] | None = None
        self._from_headers: tuple[CallUsage, ...] = ()
        self._context: dict[str, str] = {}

    @classmethod
    def open(
        cls, usage: str, *, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> ResponseReader | None:
        """A reader for a response that begins.

        Args:
            usage: ``auto`` or an API's name.
            status: the response's status.
            headers: the response's headers.

        Returns:
            None where nothing can be read here: the status is not 2xx, or the content is of another type, and
            not certainly a model's.
        """
        if usage in ("none", "fields") or not has_answer(status):
            return None
        sent = tuple(headers)
        kind, coding = content_of(sent)
        reader = cls(usage, kind, coding)
        if not is_readable(kind, declared=usage != "auto"):
            if usage == "auto" or kind == HTML:
                return None
            reader._pass_over()
        if usage in _WORDS_OF_BEDROCK:
            reader._read_headers(sent)
        return reader

    def _pass_over(self) -> None:
        """Read nothing of a body that is of another type, such as sound."""
        self.is_opaque, self._is_coded = True, False
        self._body, self._feed_framing, self._decoding = None, feed_nothing, None

    def _read_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep what Bedrock's headers say: the tier, and figures, which count where the body has none."""
        sent = [
            (name.decode("latin-1").lower(), value.decode("latin-1"))
            for name, value in headers
            if name[: len(_AMAZON)].lower() == _AMAZON
        ]
        self._context = header_context(sent)
        event_usage = header_usage(sent)
        if event_usage is not None:
            reported = ReportedCalls()
            reported.add(event_usage)
            self._from_headers = reported.usages(complete=True)

    @property
    def output_bytes_seen(self) -> int:
        """UTF-8 bytes of the model's text so far."""
        return self._observer.text_bytes + (0 if self._large_json is None else self._large_json.text_bytes)

    @property
    def estimated_output_tokens(self) -> int:
        """Estimated tokens of the text that no figures cover."""
        if self._from_headers:
            return 0
        if self._is_coded:
            return min(max(1, self._unread_bytes // self._coded_bytes_per_token), _CODED_TOKENS_MAX)
        return self._observer.estimated_output_tokens

    @property
    def unread_figure(self) -> str | None:
        """The path of a token figure that came, and that is not read; None: there is none."""
        return self._observer.unread_figure

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body; never raises."""
        drain(self.read(chunk))

    def read(self, chunk: bytes) -> Work | None:
        """As :meth:`feed`; what takes time is left to do, before anything else is read."""
        # Most servers write one event at a time, each like the one before it.
        is_between = self.is_repeating or (self._sse is not None and self._sse.is_between)
        self.is_repeating = is_between and self.skip_repeats(chunk)
        if self.is_repeating:
            return None
        if self._is_coded:
            self._fed = self._fed or bool(chunk)
            self._unread_bytes += len(chunk)
            return None
        if self._decoding is None and 0 < len(chunk) <= PIECE_BYTES:
            self._fed = True
            return self._feed_framing(chunk)
        return self._read_pieces(chunk)

    def _read_pieces(self, chunk: bytes) -> Work:
        self._fed = self._fed or bool(chunk)
        yield from read_pieces(chunk, self._decoding, self._feed_framing)

    def finish(self, *, complete: bool) -> Work:
        """The work at the body's end, before :meth:`close`, which else does it without a pause.

        Args:
            complete: False where the response ended early.
        """
        # A truncated event cannot be read; that is expected.
        self._is_cut = not complete
        if self._json is not None:
            self._json.unseen |= self._is_cut
        if self._body is not None:
            yield from self._body.close()

    def close(self, *, complete: bool, asked: Callable[[], bool] = lambda: True) -> tuple[CallUsage, ...]:
        """Usage of the response's calls; none where it is no language model's. Never raises.

        Args:
            complete: False where the response ended early: figures that were not the last are partial then.
            asked: whether the request asked a language model; looked at where the response cannot tell.
        """
        if self._calls is None:
            drain(self.finish(complete=complete))
            self._calls = self._close_calls(complete=complete, asked=asked)
            # These hold this reader: let go of, it is gone without the help of the garbage collector.
            self._body = self._decoding = self._sse = self._json = self._large_json = None
            self._feed_framing = feed_nothing
        return self._calls

    def snapshot(self) -> tuple[CallUsage, ...]:
        """Usage of the calls by the events so far; the body may go on. Of an event that has begun, none."""
        return self._observer.close(complete=False, notes=()) if self._calls is None else self._calls

    def _close_calls(self, *, complete: bool, asked: Callable[[], bool]) -> tuple[CallUsage, ...]:
        calls = self._read_calls(complete=complete, asked=asked)
        is_unread = self._fed and all(call.source == "missing" for call in calls)
        if is_unread and self._from_headers:
            return self._from_headers
        if not self._context:
            return calls
        contexts = [{**self._context, **dict(call.context)} for call in calls]
        return tuple(
            replace(call, context=tuple(sorted(context.items())))
            for call, context in zip(calls, contexts, strict=True)
        )

    def _read_calls(self, *, complete: bool, asked: Callable[[], bool]) -> tuple[CallUsage, ...]:
        if not self._fed:
            return ()
        if self.is_opaque:
            return (self._observer.missing({"unreadable"}),) if asked() else ()
        if self._is_coded:
            return (self._observer.missing({"encoding"}),) if self._declared or asked() else ()
        if self._is_text and not (self._declared and asked()):
            return ()
        calls = self._observer.close(complete=complete, notes=self._notes())
        if not calls and not complete and self._observer.is_undetermined and asked():
            # Cut off before it could say what it is.
            calls = (self._observer.missing({"ended_early"}),)
        return calls

    def _notes(self) -> list[Note]:
        found: list[Note] = []
        decoding = self._decoding
        framing = None if self._body is None else self._body.reader
        if (decoding is not None and decoding.corrupt) or (framing is not None and framing.corrupt):
            found.append("corrupt")
        if decoding is not None and decoding.too_large:
            found.append("too_large")
        self.is_damaged = bool(found) or self._unreadable
        if self._unreadable or self._is_foreign:
            found.append("unreadable")
        return found

    def _open_reader(self, framing: Framing) -> IncrementalReader:
        if framing == "sse":
            return self._open_sse()
        if framing == "frames":
            return EventStreamReader(self._read_frame, self._large_frame)
        if framing == "lines":
            return NdjsonReader(self._callbacks())
        if framing == "json":
            return self._open_json()
        if framing == "text":
            self._is_text = True
            return _Foreign()
        # It may be the app's own text, whose call the app reports itself.
        self._is_foreign = True
        return self._open_sse() if self._declared else _Foreign()

    def _open_sse(self) -> SseReader:
        sse = SseReader(self._callbacks())
        # A compressed event is not compared.
        self._sse = sse if self._decoding is None else None
        return sse

    def _open_json(self) -> JsonReader:
        self._json = JsonReader(self._callbacks(), unseen=self._declared or self._is_cut)
        return self._json

    def _callbacks(self) -> EventCallbacks:
        return EventCallbacks(self._handle_event, self._wants, self._open_large, self.skip_repeats)

    def _wants(self, data: bytes) -> bool:
        """Whether an event, or something among several events, is read."""
        return not self._selects or may_be_known(data)

    def _open_large(self, name: str | None = None) -> LargeReader:
        """A reader of an event that is too large to be kept, and its name, where that stands beside it."""

        def observe(event: Table, measured: int) -> None:
            self._observe_large(event if name is None else {name: event}, measured)

        self._large_json = LargeJsonReader(observe, self._mark_unreadable, ROOT.members.get(name or "", ROOT))
        self._large_figure = None
        return FigureWatch(self._large_json, self._note_figure)

    def _note_figure(self, name: str) -> None:
        self._large_figure = self._large_figure or name

    def _observe_large(self, event: Table, measured: int) -> None:
        """The kept part of an event that is too large, or not well-formed."""
        if self._is_cut and not self._observer.can_recognise(event) and UNKNOWN not in event:
            return  # Torn before it could say what it is.
        figure, self._large_figure = self._large_figure, None
        if not self._observer.observe(event, measured) and figure is not None:
            self._observer.note_figure(event, figure)
        self._select_events()

    def _mark_unreadable(self) -> None:
        if not self._is_cut:
            self._observer.is_strange = True
            self._unreadable = True

    def _handle_event(self, data: bytes) -> Work | None:
        """One event of a stream, one item of an array, or a whole document."""
        if len(data) <= _DONE_BYTES_MAX and data.strip() == DONE:
            self._observer.end()
            return None
        return self._read_event(data)

    def _read_frame(self, headers: Mapping[str, str], payload: bytes) -> Work | None:
        """One frame of an Amazon event stream."""
        if headers.get(":message-type") in ("exception", "error"):
            self._observer.is_broken = True
            return None
        name = headers.get(":event-type", "")
        if name == "chunk":
            if is_dense(payload):
                return feed_large(Base64JsonReader(self._open_large()), payload)
            try:
                inner = dig(load(payload), ("bytes",))
                payload = b64decode(inner, validate=True) if isinstance(inner, str) else b""
            except ValueError:
                self._unreadable = True
                return None
        return self._read_event(payload, "" if name == "chunk" else name) if self._wants(payload) else None

    def _large_frame(self, headers: Mapping[str, str]) -> LargeReader:
        """A reader of a frame that is too large to be kept."""
        name = headers.get(":event-type", "")
        return Base64JsonReader(self._open_large()) if name == "chunk" else self._open_large(name)

    def _read_event(self, data: bytes, name: str = "") -> Work | None:
        """Read the JSON of an event, and its name if that stands outside."""
        if not name and self.skip_repeats(data):
            return None
        observer = self._observer
        key = None if name else key_of(data)
        if key is not None:
            measured = observer.recall(self._known, key)
            if measured is not None:
                if measured:
                    self._repeats.learn(data, measured)
                return None
        if is_dense(data):
            return feed_large(self._open_large(name or None), data)
        try:
            event = table(load(data))
        except ValueError:
            # Torn, or several values in place of one: the readable part is read.
            return feed_large(self._open_large(name or None), data)
        if event is None:
            observer.is_strange = True
            return None
        is_first, before, reports = observer.is_new, observer.text_bytes, _may_report_tokens(data)
        reported = observer.observe({name: event} if name else event, reports=reports)
        self._select_events()
        measured = observer.text_bytes - before
        if not (reported or name) and observer.is_known and measured > 0:
            self._repeats.learn(data, measured)
        if key is not None and not reports and "response" not in event:
            observer.memorize(self._known, data, key, measured, is_first=is_first)
        return None

    def _select_events(self) -> None:
        """After some foreign events, only those are read that may be a language model's."""
        self._selects = self._observer.is_foreign


def _may_report_tokens(data: bytes) -> bool:
    """Whether an event may hold usage figures, an error, or token figures that are not read."""
    return may_report(data) or may_have_figures(data)
