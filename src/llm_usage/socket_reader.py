"""Usage in the messages of a websocket: events of OpenAI's Realtime and Live APIs and of Gemini Live."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import CallUsage, fill_estimates
from llm_usage.estimate import billed_input
from llm_usage.event_marks import may_have_figures, may_report
from llm_usage.framing.content_codings import PIECE_BYTES
from llm_usage.framing.large_json import LargeJsonReader
from llm_usage.json_values import load, table
from llm_usage.observer import UsageObserver
from llm_usage.providers import BY_NAME
from llm_usage.providers.gemini import GEMINI, live_api
from llm_usage.providers.openai import LIVE_SESSION, SESSION_LENGTHS
from llm_usage.session_models import SessionModels, is_transcription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_usage.framing.incremental import Work
    from llm_usage.json_values import Table

_MEASURED_BYTES_MAX: Final = 1 << 20
_IDS_MAX: Final = 1_000
_TURN_OF_GEMINI: Final = frozenset({"setupComplete", "serverContent"})
"""Members by which a session shows that it is Gemini's: the figures of a turn come without any of them."""
_TEXT: Final = (b'.delta"', b'"serverContent"')
# Encoded sound and images, which come often.
_MEDIA: Final = (b'audio.delta"', b'"audio"', b'"inlineData"', b'"mediaChunks"', b'"realtimeInput"')
_SOUND: Final = re.compile(
    rb'\{\s*(?:"event_id"\s*:\s*"[^"\\]{0,512}"\s*,\s*)?'
    rb'"type"\s*:\s*"input_audio_buffer\.append"\s*,\s*"audio"\s*:\s*"'
)
"""Its pieces are not parsed: an open microphone sends ten a second."""


class SocketReader:
    """Reads the usage of one session, message by message.

    Each answer of the model is counted when its figures come. An answer that has begun when the websocket
    closes is estimated by its text, and by the texts that the client has sent for it.

    Args:
        usage: an API's name, or ``auto``.
        count: takes the calls whose figures have come. A session's length comes as one call again and again,
            longer each time, under one ``response_id``.
        models: finds the models that may answer; None: those that the messages name.
        only_transcribes: whether no model answers, so that the one of the request transcribes.

    Attributes:
        session: the models that the messages name.
    """

    def __init__(
        self,
        usage: str = "auto",
        *,
        count: Callable[[Sequence[CallUsage]], None],
        models: Callable[[], Sequence[str]] | None = None,
        only_transcribes: bool = False,
    ) -> None:
        self.session = SessionModels(only_transcribes=only_transcribes)
        self._usage = usage
        self._declared = usage != "auto"
        self._live_api = live_api(self._named_models if models is None else models)
        self._count = count
        self._observer: UsageObserver | None = self._new_observer()
        self._input_tokens = 0
        self._unread_figure: str | None = None
        self._counted_ids: dict[str, None] = {}
        self._length: tuple[CallUsage, ...] = ()

    def _named_models(self) -> Sequence[str]:
        current = self.session.current
        return self.session.asked if current is None else (current,)

    def _new_observer(self) -> UsageObserver:
        apis = (self._live_api,) if self._usage == GEMINI.name else BY_NAME[self._usage]
        return UsageObserver(apis, declared=self._declared)

    def received(self, data: bytes) -> None:
        """Take a message of the client's: its texts are measured, for an answer that may be cut off."""
        self.session.received(data)
        # Texts alone: sound comes in many pieces, as JSON or as bytes.
        if data and not _is_sound(data):
            self._input_tokens += billed_input(data[:_MEASURED_BYTES_MAX], size=len(data), media_tokens=0)

    def sent(self, data: bytes) -> None:
        """Take a message of the server's."""
        self.session.sent(data)
        if not _is_read(data):
            return
        try:
            event = table(load(data))
        except ValueError:
            return  # No event of a model's.
        if event is not None:
            self._read_event(event)

    def sent_large(self, data: bytes) -> Work:
        """As :meth:`sent`, in steps: a message that ends an answer may repeat all that went in."""
        self.session.sent(data)
        if not _is_read(data):
            return
        reader = LargeJsonReader(self._read_event, lambda: None)
        for at in range(0, len(data), PIECE_BYTES):
            yield from reader.feed(data[at : at + PIECE_BYTES]) or ()
            yield
        reader.end()

    def _read_event(self, event: Table, measured: int | None = None) -> None:
        observer = self._observer
        if observer is None:
            return
        if not (self._declared or _TURN_OF_GEMINI.isdisjoint(event)):
            self._usage, self._declared = GEMINI.name, True
            observer = self._observer = self._new_observer()
        if event.get("type") in SESSION_LENGTHS:
            self._count_length(event)
            return
        # A transcription is another model's call: an answer that has begun goes on.
        is_apart = is_transcription(event)
        reader = self._new_observer() if is_apart else observer
        reader.observe(event, measured)
        calls = [call for call in reader.close(complete=False, notes=()) if call.source == "reported"]
        if calls or is_apart:  # The reader is not kept.
            self._unread_figure = self._unread_figure or reader.unread_figure
        if not calls:
            return
        calls = [call for call in calls if self._is_new(call)]
        model = self.session.transcription_of() if is_apart else self.session.current
        calls = [call if call.model else replace(call, model=model) for call in calls]
        if not is_apart:
            self._observer = self._new_observer()
            self._input_tokens = 0
        # The length comes last: of the calls of an open websocket only the newest ones are kept.
        self._count((*calls, *self._length))

    def _count_length(self, event: Table) -> None:
        """Count how long a session is so far, in place of what was counted of it before."""
        reader = self._new_observer()
        reader.observe(event)
        found = reader.close(complete=True, notes=())
        if _sum_details(found) > _sum_details(self._length):
            self._length = tuple(replace(call, response_id=LIVE_SESSION) for call in found)
            self._count(self._length)

    def _is_new(self, call: CallUsage) -> bool:
        """Whether an answer was not counted before: its last event may be sent more than once."""
        call_id = call.response_id
        if call_id is None or call_id in self._counted_ids:
            return call_id is None
        if len(self._counted_ids) >= _IDS_MAX:
            del self._counted_ids[next(iter(self._counted_ids))]
        self._counted_ids[call_id] = None
        return True

    def close(self) -> str | None:
        """Estimate the answer that has begun and has not ended, if there is one. Idempotent.

        Returns:
            The path of a token figure that came, and that is not read; None: there is none.
        """
        observer, self._observer = self._observer, None
        if observer is None:
            return None
        calls = observer.close(complete=False, notes=())
        tokens = observer.estimated_output_tokens
        if not calls and tokens:
            calls = (CallUsage(source="missing"),)
        if tokens or any(call.source == "partial" for call in calls):
            self._count(fill_estimates(calls, input_tokens=lambda: self._input_tokens, output_tokens=tokens))
        return self._unread_figure or observer.unread_figure


def _sum_details(calls: Iterable[CallUsage]) -> int:
    return sum(sum(call.details.values()) for call in calls)


def _is_read(data: bytes) -> bool:
    """Whether a message may hold usage, or a model's text without sound and images."""
    if may_report(data) or may_have_figures(data):
        return True
    return any(mark in data for mark in _TEXT) and not any(mark in data for mark in _MEDIA)


def _is_sound(data: bytes) -> bool:
    """Whether a message is a piece of sound for OpenAI's Realtime API, and nothing else."""
    begun = _SOUND.match(data)
    return begun is not None and data.find(b'"', begun.end()) == len(data) - 2 and data.endswith(b'"}')
