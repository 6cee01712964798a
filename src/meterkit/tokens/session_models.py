"""Models of a session over a websocket, as its messages name them. Pure.

- https://platform.openai.com/docs/api-reference/realtime-client-events/session/update
- https://ai.google.dev/api/live
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.tokens.json_values import dig, load, table, text
from meterkit.tokens.request import READ_BYTES_MAX, read_request
from meterkit.tokens.requested_model import names_of, plain_name

if TYPE_CHECKING:
    from meterkit.tokens.json_values import Table

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
            ignore each.
        current: the model that the server has last named; None: it has named none.
    """

    __slots__ = ("_asked_transcription", "_transcription", "asked", "current")

    def __init__(self) -> None:
        self.asked: tuple[str, ...] = ()
        self.current: str | None = None
        self._asked_transcription: str | None = None
        self._transcription: str | None = None

    def received(self, data: bytes) -> None:
        """Take a message of the client's."""
        request = read_request(data) if any(mark in data for mark in _ASKS) else None
        if request is None:
            return
        self.asked = names_of((*self.asked, *(name for field in _ASKED for name in request.texts(field))))
        for path in _TRANSCRIPTION:
            for name in request.texts(".".join(("session", *path))):
                self._asked_transcription = plain_name(name)

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
        self.current = _name(session, ("model",)) or self.current
        for path in _TRANSCRIPTION:
            self._transcription = _name(session, path) or self._transcription

    def transcription_of(self, event: Table) -> str | None:
        """The model that transcribes what the client says, if an event has such text; else None."""
        kind = event.get("type")
        if not isinstance(kind, str) or _TRANSCRIBED not in kind:
            return None
        return self._transcription or self._asked_transcription


def _name(session: Table, path: tuple[str, ...]) -> str | None:
    name = text(dig(session, path))
    return None if name is None else plain_name(name)
