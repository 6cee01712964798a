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
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from llm_usage.call_usage import NAMES_MAX, WRITTEN_CHARS_MAX, first_and_last, names_of, plain_name
from llm_usage.form_models import form_readers, is_form
from llm_usage.json_readings import values_read
from llm_usage.llm_request import MARKS_MAX, READ_BYTES_MAX, may_be_json

if TYPE_CHECKING:
    from llm_usage.llm_request import LlmRequest

_ENCODINGS_MAX: Final = 3
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
    return names_of(map(_decode_name, first_and_last(found))) if found else ()


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


def json_text(written: bytes) -> str:
    """The text that is written in JSON."""
    text = written.decode("utf-8", "replace")
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


class JsonModelReader:
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
            self._written = list(names_of((*self._written, *map(json_text, first_and_last(found)))))

    def models(self) -> tuple[str, ...]:
        """The models that were found by now."""
        return tuple(self._written)


def models_in_text(body: bytes) -> tuple[str, ...]:
    """Models that JSON seems to name that is too large or too dense to be parsed; see `JsonModelReader`."""
    reader = JsonModelReader()
    reader.feed(body)
    return reader.models()


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
        # A form may name another model behind its files.
        return names_of((*of_json, *models_of_form(head.content_type, body))) if is_whole else None
    if asked is not None and asked.has_unread_models:
        return None
    if asked is None and (may_be_json(body) or not (body or is_whole)):
        return None
    named = dict[str, None]()
    for written in of_json:
        name = plain_name(written)
        if name is not None:
            named[name] = None
            if len(named) > NAMES_MAX:
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
