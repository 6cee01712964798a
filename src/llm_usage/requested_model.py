"""Models that a request or a session names: in path, query, body (JSON or form) and websocket messages. Pure.

Each name that some app may read is found: of several the dearest counts, so a name too many never makes a
request cheaper, and one too few could. Reading takes a bounded time, whatever a client sends.

- https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html
- https://ai.google.dev/api/generate-content, https://ai.google.dev/api/live
- https://developers.cloudflare.com/workers-ai/get-started/rest-api/
- https://learn.microsoft.com/azure/ai-foundry/openai/reference
- https://platform.openai.com/docs/api-reference/realtime-client-events/session/update
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from llm_usage.call_usage import WRITTEN_CHARS_MAX, plain_name
from llm_usage.json_values import dig, load, table, text
from llm_usage.llm_request import MARKS_MAX, READ_BYTES_MAX, may_be_json, read_request, values_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_usage.json_values import Table
    from llm_usage.llm_request import LlmRequest

T = TypeVar("T")

_MODELS_MAX: Final = 8
_ENCODINGS_MAX: Final = 3
_PARTS_MAX: Final = 2_048
_BOUNDARIES_MAX: Final = 4
_PART_HEAD_BYTES: Final = 10 << 10
_VALUE_BYTES_MAX: Final = 1 << 10

_BEDROCK: Final = "/model/"
_BEDROCK_VERB: Final = re.compile(r"converse|converse-stream|invoke|invoke-with-[a-z-]+|count-tokens")
_IN_PATH: Final = re.compile(
    r"/(?:models|tunedmodels)/+(?P<gemini>[^/:]+):[a-z]|/(?:deployments|engines)/+(?P<azure>[^/]+)/"
    r"|/ai/+run/+(?P<cloudflare>@[^/]+/+[^/]+/+[^/]+)",
    re.IGNORECASE,
)


def _encoded_pattern(word: str) -> str:
    """A pattern for a word, each letter of it percent-encoded or not."""
    return "".join(f"(?:{letter}|%{ord(letter):02x})" for letter in word)


_PAIR: Final = re.compile(
    rf"(?:^|[&;?])({_encoded_pattern('model')}|{_encoded_pattern('deployment')})=([^&;]*)".encode(),
    re.IGNORECASE,
)


def member_pattern(name: str) -> re.Pattern[bytes]:
    """A pattern for a member of JSON whose value is a text; JSON may escape any letter of the name."""
    member = b"".join(
        rb"(?:%c|\\u00%x(?:%x|%X))" % (ord(letter), ord(letter) >> 4, ord(letter) & 15, ord(letter) & 15)
        for letter in name
    )
    return re.compile(rb'"' + member + rb'"\s*:\s*("(?:[^"\\]|\\.){1,1024}")')


_IN_JSON: Final = member_pattern("model")
JSON_EDGE_BYTES: Final = 1_100
"""A member that is longer than this is not found where pieces of a body meet."""
_BOUNDARY: Final = re.compile(rb"boundary\s*=\s*(?:\"([^\"]+)\"|([^;,\s\"]+))", re.IGNORECASE)
_FIELD: Final = re.compile(rb"\bname\*?\s*=\s*(?:[\w-]*''|[\"'])?(model)(?![\w.-])", re.IGNORECASE)


def names_of(written: Iterable[str]) -> tuple[str, ...]:
    """Each name once; of many the first and the last ones, which are those that readers of repeats take."""
    found = (plain_name(text) for text in _first_and_last(written))
    return tuple(dict.fromkeys(name for name in found if name is not None))


def _first_and_last(written: Iterable[T]) -> Sequence[T]:
    """Each once; of many the first and the last ones."""
    found = list(dict.fromkeys(written))
    half = _MODELS_MAX // 2
    return found if len(found) <= _MODELS_MAX else (*found[:half], *found[-half:])


def models_of_path(path: str) -> tuple[str, ...]:
    """The models that a path names, below whatever it is mounted.

    Args:
        path: decoded once, as servers hand it on; a name that was encoded more often is decoded, too.
    """
    if _IN_PATH.search(path) is None and _BEDROCK not in path.lower():
        return ()
    found = [match[match.lastgroup or 0] for match in _IN_PATH.finditer(path)]
    above, _, verb = path.rstrip("/").rpartition("/")
    at = above.lower().rfind(_BEDROCK)
    if at >= 0 and _BEDROCK_VERB.fullmatch(verb.lower()):
        found.append(above[at + len(_BEDROCK) :].strip("/"))
    return names_of(map(_decode_name, _first_and_last(found))) if found else ()


def _decode_name(name: str) -> str:
    name = name[:WRITTEN_CHARS_MAX]
    for _ in range(_ENCODINGS_MAX):
        if "%" not in name:
            break
        name = unquote(name)
    return name


def models_of_query(query: bytes) -> tuple[str, ...]:
    """The models that a query string names, or a form that is encoded like one."""
    if not query or query.count(b"&") > MARKS_MAX:
        return ()
    found: list[tuple[bytes, bytes]] = _PAIR.findall(query)
    return names_of(
        map(_decode_value, values_read([(unquote(name.decode()), value) for name, value in found]))
    )


def _decode_value(encoded: bytes) -> str:
    plain = encoded[:WRITTEN_CHARS_MAX].replace(b"+", b" ")
    return unquote_to_bytes(plain).decode("utf-8", "replace")


class RequestHead(NamedTuple):
    """The parts of a request's head that may name its model.

    Attributes:
        path: decoded once.
        query: the query string.
        content_type: of the body; several, joined, if the request names several.
    """

    path: str = ""
    query: bytes = b""
    content_type: bytes = b""


class BodyModels(Protocol):
    """Finds the models that a body names while it passes."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""

    def models(self) -> tuple[str, ...]:
        """The models that were found by now."""
        ...


class FormModels:
    """Reads the field ``model`` of a multipart form, wherever in it it stands.

    It keeps no file, and stops after 2,048 parts: the usual frameworks refuse more than 1,000.

    Args:
        boundary: as the head of the request names it.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._parts_left = _PARTS_MAX
        self._edge: bytes = b""
        self._written: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        if self._parts_left <= 0:
            return
        window = self._edge + data
        _, *parts = window.split(self._delimiter, self._parts_left)
        if len(parts) == self._parts_left:
            parts.pop()
            self._parts_left = 0
        elif parts and len(parts[-1]) < _PART_HEAD_BYTES:
            self._edge = self._delimiter + parts.pop()
        else:
            self._edge = window[1 - len(self._delimiter) :]
        self._parts_left -= len(parts)
        self._written += self._values(parts)

    def models(self) -> tuple[str, ...]:
        """The models that were found by now, also in a part that has not ended."""
        last = self._values(self._edge.split(self._delimiter)[1:])
        return names_of(values_read([*self._written, *last]))

    @staticmethod
    def _values(parts: Iterable[bytes]) -> Iterator[tuple[str, str]]:
        for part in parts:
            head, blank, value = part[:_PART_HEAD_BYTES].replace(b"\r\n", b"\n").partition(b"\n\n")
            field = _FIELD.search(head) if blank else None
            if field is not None:
                yield field[1].decode(), value[:_VALUE_BYTES_MAX].decode("utf-8", "replace")


def json_text(written: bytes) -> str:
    """The text that is written in JSON."""
    text = written.decode("utf-8", "replace")
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


class JsonModels:
    """Reads members called ``model`` in JSON that is too large or too dense to be parsed.

    Quotation marks within a text are escaped, so no prompt can look like such a member.
    """

    def __init__(self) -> None:
        self._edge: bytes = b""
        self._written: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        window = self._edge + data
        self._edge = window[-JSON_EDGE_BYTES:]
        if b'"model"' in window or b"\\u006" in window:
            found: list[bytes] = _IN_JSON.findall(window)
            self._written = list(names_of((*self._written, *map(json_text, _first_and_last(found)))))

    def models(self) -> tuple[str, ...]:
        """The models that were found by now."""
        return tuple(self._written)


def models_in_text(body: bytes) -> tuple[str, ...]:
    """The models that JSON seems to name that is too large or too dense to be parsed; see `JsonModels`."""
    reader = JsonModels()
    reader.feed(body)
    return reader.models()


def is_form(content_type: bytes) -> bool:
    """Whether apps read a body as a form."""
    kind = content_type.lower()
    return b"multipart/" in kind or b"x-www-form-urlencoded" in kind


def form_readers(content_type: bytes, body: bytes) -> list[FormModels]:
    """Readers of a multipart form, one for each boundary that it may have.

    Args:
        content_type: of the request.
        body: its first bytes, whose first line is the boundary if the head names none.
    """
    if b"multipart/" not in content_type.lower():
        return []
    found = dict.fromkeys(quoted or plain for quoted, plain in _BOUNDARY.findall(content_type))
    first = body[:_PART_HEAD_BYTES].lstrip().partition(b"\n")[0].rstrip()
    if not found and first.startswith(b"--") and first.strip(b"-"):
        found = {first.removeprefix(b"--"): None}
    return [FormModels(boundary) for boundary in list(found)[:_BOUNDARIES_MAX]]


def models_of_form(content_type: bytes, body: bytes) -> tuple[str, ...]:
    """The models that a form names in what is known of it."""
    readers = form_readers(content_type, body)
    for reader in readers:
        reader.feed(body)
    found = [name for reader in readers for name in reader.models()]
    if b"x-www-form-urlencoded" in content_type.lower():
        found += models_of_query(body[:READ_BYTES_MAX])
    return names_of(found)


def models_of_body(
    head: RequestHead, body: bytes, asked: LlmRequest | None, *, is_whole: bool
) -> tuple[str, ...] | None:
    """The models that a body names; None: it cannot be read so far that it is certain.

    Args:
        head: of the request.
        body: as much of it as was read.
        asked: what its JSON says; None: it is none, or was not read to its end.
        is_whole: whether it was read to its end.
    """
    of_json = () if asked is None else asked.models
    if is_form(head.content_type):
        found = names_of((*of_json, *models_of_form(head.content_type, body)))
        return found if found or is_whole else None
    if asked is not None and asked.has_unread_models:
        return None
    if asked is None and (may_be_json(body) or not (body or is_whole)):
        return None
    named = dict[str, None]()
    for written in of_json:
        name = plain_name(written)
        if name is not None:
            named[name] = None
            if len(named) > _MODELS_MAX:
                return None
    return tuple(named)


def requested_models(head: RequestHead, of_body: tuple[str, ...] | None) -> tuple[str, ...]:
    """The models that a request may be of; none: it names none, or it is not known which.

    Args:
        head: of the request.
        of_body: what its body names; None: that is not known. Then the path's names alone count: a client may
            add a query string that its app does not read, but no path.
    """
    of_path = models_of_path(head.path)
    if of_body is None:
        return of_path
    return tuple(dict.fromkeys((*of_body, *of_path, *models_of_query(head.query))))


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
