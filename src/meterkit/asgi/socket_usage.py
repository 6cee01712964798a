"""Usage of language models, read off the messages of one websocket: OpenAI's Realtime API and Gemini Live."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from meterkit.asgi.logs import Contained
from meterkit.tokens.call_usage import CallUsage, filled
from meterkit.tokens.estimate import billed_input
from meterkit.tokens.json_values import load, table
from meterkit.tokens.layout import may_report
from meterkit.tokens.observer import Observer
from meterkit.tokens.providers import BY_NAME
from meterkit.tokens.session_models import SessionModels, is_transcription
from meterkit.tokens.unread_figures import may_have_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Message

_BYTES_MAX: Final = 1 << 20
_IDS_MAX: Final = 1_000
# Encoded sound and images: nothing in them is read, and they come often.
_MEDIA: Final = (b'audio.delta"', b'"audio"', b'"inlineData"', b'"mediaChunks"', b'"realtimeInput"')
_LIVE: Final = frozenset({"setupComplete", "serverContent"})
_SAYS: Final = (b'.delta"', b'"serverContent"')


@dataclass(slots=True, eq=False)
class SocketUsage:
    """Reads along what an app sends: the events of OpenAI's Realtime API and of Gemini Live.

    Each answer of the model is counted when its figures come. An answer that has begun when the websocket
    closes is estimated by its text, and by the texts that the client has sent for it.

    Args:
        usage: the route's word.
        count: takes the calls whose figures have come.
        complain: takes what went wrong within; the app never hears of it.
        report_unread: takes, at the end, the path of a token figure that was not read.

    Attributes:
        session: the models that the messages name.
    """

    usage: str
    count: Callable[[Sequence[CallUsage]], None]
    complain: Callable[[str], None]
    report_unread: Callable[[str], None]
    session: SessionModels = field(default_factory=SessionModels, init=False)
    _declared: bool = field(init=False)
    _input_tokens: int = field(default=0, init=False)
    _unread: str | None = field(default=None, init=False)
    _seen: dict[str, None] = field(default_factory=dict[str, None], init=False)
    _observer: Observer | None = field(init=False)

    def __post_init__(self) -> None:
        self._declared = self.usage != "auto"
        self._observer = self._new_observer()

    def _new_observer(self) -> Observer:
        return Observer(BY_NAME[self.usage], declared=self._declared)

    def sent(self, message: Message) -> None:
        """Read a message of the app's."""
        data = _data_of(message)
        with Contained(self._break):
            self.session.sent(data)
        reports = may_report(data) or may_have_figures(data)
        if not reports and not any(mark in data for mark in _SAYS):
            return
        if len(data) > _BYTES_MAX or (not reports and any(mark in data for mark in _MEDIA)):
            return
        with Contained(self._break):
            self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            event = table(load(data))
        except ValueError:
            return  # No event of a model's.
        observer = self._observer
        if observer is None or event is None:
            return
        if not (self._declared or _LIVE.isdisjoint(event)):
            # The figures of a turn come in a message that has nothing else.
            self.usage, self._declared = "gemini", True
            observer = self._observer = self._new_observer()
        # A transcription is another model's call: an answer that has begun goes on.
        is_apart = is_transcription(event)
        reader = self._new_observer() if is_apart else observer
        reader.observe(event)
        calls = [call for call in reader.close(complete=False, notes=()) if call.source == "reported"]
        if calls or is_apart:  # The reader is not kept.
            self._unread = self._unread or reader.unread_figure
        if not calls:
            return
        calls = [call for call in calls if self._is_new(call)]
        if is_apart:
            model = self.session.transcription_of()
            calls = [call if call.model else replace(call, model=model) for call in calls]
        else:
            self._observer = self._new_observer()
            self._input_tokens = 0
        self.count(calls)

    def _is_new(self, call: CallUsage) -> bool:
        """Whether an answer was not counted before: its last event may be sent more than once."""
        name = call.response_id
        if name is None or name in self._seen:
            return name is None
        if len(self._seen) >= _IDS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = None
        return True

    def received(self, message: Message) -> None:
        """Measure the texts of a message of the client's, for an answer that may be cut off."""
        data = _data_of(message)
        with Contained(self._break):
            self.session.received(data)
        if 0 < len(data) <= _BYTES_MAX and not any(mark in data for mark in _MEDIA):
            with Contained(self._break):
                self._input_tokens += billed_input(data, size=len(data))

    def close(self) -> None:
        """Estimate the answer that has begun and has not ended, if there is one."""
        observer, self._observer = self._observer, None
        if observer is None:
            return
        with Contained(self._break):
            unread = self._unread or observer.unread_figure
            if unread is not None:
                self.report_unread(unread)
            calls = observer.close(complete=False, notes=())
            tokens = observer.estimated_output_tokens
            if not calls and tokens:
                calls = (CallUsage(source="missing"),)
            if tokens or any(call.source == "partial" for call in calls):
                self.count(filled(calls, input_tokens=lambda: self._input_tokens, output_tokens=tokens))

    def _break(self, error: str) -> None:
        self._observer = None
        self.complain(f"reading token usage off a websocket failed, which counts nothing: {error}")


def _data_of(message: Message) -> bytes:
    text: str | None = message.get("text")
    return text.encode("utf-8", "surrogatepass") if text is not None else message.get("bytes") or b""
