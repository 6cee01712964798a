"""Models of a websocket's session: those that the client asks for, and those that the server names.

https://platform.openai.com/docs/api-reference/realtime-client-events/session/update, https://ai.google.dev/api/live
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_usage.call_usage import names_of, plain_name
from llm_usage.json_values import dig, load, table, text
from llm_usage.llm_request import READ_BYTES_MAX, may_be_json, read_request
from llm_usage.requested_model import models_in_text

if TYPE_CHECKING:
    from llm_usage.json_values import Table

# In a message of the client's that may name a model; with escapes it may be spelled in other ways.
_ASKS: Final = (b"ession", b"etup", b"\\u")
_ANSWERS: Final = (b"session.created", b"session.updated")
_ASKED: Final = ("session.model", "setup.model")
_TRANSCRIPTION: Final = ("audio", "input", "transcription", "model"), ("input_audio_transcription", "model")
_TRANSCRIBED: Final = "input_audio_transcription"


class SessionModels:
    """The models of one session: of its answers, and of the transcription of what the client says.

    Attributes:
        asked: the models of answers that the client has named so far. It may name several, and the server may
            ignore each. One of them is the empty text where a message could only be searched.
        current: the model that the server has last named; None: it has named none.
        only_transcribes: whether no model answers, so that the one of the request transcribes.
    """

    __slots__ = ("_asked_transcriptions", "_transcription", "asked", "current", "only_transcribes")

    def __init__(self, *, only_transcribes: bool = False) -> None:
        self.only_transcribes = only_transcribes
        self.asked: tuple[str, ...] = ()
        self.current: str | None = None
        self._asked_transcriptions: frozenset[str] = frozenset()
        self._transcription: str | None = None

    def received(self, data: bytes) -> None:
        """Take a message of the client's."""
        if not (any(mark in data for mark in _ASKS) and may_be_json(data)):
            return
        request = read_request(data)
        if request is None:
            self.asked = (*names_of((*self.asked, *models_in_text(data))), "")
            return
        named = names_of((*self.asked, *(name for field in _ASKED for name in request.texts(field))))
        self.asked = (*named, "") if "" in self.asked else named
        if len(self._asked_transcriptions) <= 1:
            fields = (".".join(("session", *path)) for path in _TRANSCRIPTION)
            self._asked_transcriptions |= {name for field in fields for name in request.texts(field)}

    def sent(self, data: bytes) -> None:
        """Take a message of the server's."""
        if len(data) > READ_BYTES_MAX or not any(mark in data for mark in _ANSWERS):
            return
        try:
            event = table(load(data)) or {}
        except ValueError:
            return  # No event of a model's.
        kind, session = event.get("type"), table(event.get("session"))
        if session is None or not isinstance(kind, str) or not kind.endswith(("created", "updated")):
            return
        self.current = _session_name(session, ("model",)) or self.current
        for path in _TRANSCRIPTION:
            self._transcription = _session_name(session, path) or self._transcription

    def transcription_of(self) -> str | None:
        """The model that transcribes what the client says.

        Returns:
            None where several may be, or the session only transcribes: those that the request names. The
            empty text where nothing names one: it is another model than the one that answers.
        """
        if self._transcription is not None:
            return self._transcription
        asked = self._asked_transcriptions
        if not asked:
            return None if self.only_transcribes else ""
        return plain_name(next(iter(asked))) if len(asked) == 1 else None


def is_transcription(event: Table) -> bool:
    """Whether an event has the text of what the client says, and the usage of the model that wrote it."""
    kind = event.get("type")
    return isinstance(kind, str) and _TRANSCRIBED in kind


def _session_name(session: Table, path: tuple[str, ...]) -> str | None:
    name = text(dig(session, path))
    return None if name is None else plain_name(name)
