"""Parse the JSON-RPC message in the body of an MCP request so that no server can read another one in it.

Parsers disagree about members that are named twice and about capitals in names. Such a body is not read, and
neither is one that is no single JSON object: no client of MCP sends one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from meterkit.catalog.models import NAMED_METHODS

if TYPE_CHECKING:
    from meterkit.catalog.models import McpMatch

MESSAGE_BYTES_MAX: Final = 4 << 20
"""As many as the servers of the SDKs take: https://github.com/modelcontextprotocol/python-sdk"""
NAME_CHARS_MAX: Final = 1_024

# Beyond this size a body is parsed only if it is cheap to parse: ASCII with few escapes, as base64 is.
_ANY_BYTES_MAX: Final = 1 << 20
_MARKS_MAX: Final = 1 << 14
_MEMBERS_MAX: Final = 1_024
_INTEGER_CHARS_MAX: Final = 24
_MEMBERS: Final = ("jsonrpc", "id", "method", "params")


@dataclass(frozen=True, slots=True, kw_only=True)
class McpMessage:
    """A message that a client posts.

    Attributes:
        method: None: it answers a request of the server's.
        name: of the tool or prompt, where the method has one.
        id: of the request, to be repeated in its answer.
        is_request: whether it wants an answer: it has an id.
    """

    method: str | None
    name: str | None = None
    id: str | float | None = None
    is_request: bool = True

    def falls_under(self, match: McpMatch) -> bool:
        """Whether a line takes this message."""
        return match.takes(self.method, self.name)


class UnreadableMessageError(Exception):
    """A body is no message that every server reads alike; the text says why."""


def read_message(body: bytes, *, is_whole: bool = True) -> McpMessage:
    """The message in a body. Takes some milliseconds at most, whatever the body.

    Raises:
        UnreadableMessageError: it is none, or parsers could differ about it.
    """
    if not is_whole:
        raise UnreadableMessageError("the body is too large, in too many pieces, or in a coding")
    root = _decoded(body)
    if not isinstance(root, tuple):
        raise UnreadableMessageError("the body is not a single JSON object")
    found = _members(cast("_Pairs", root), _MEMBERS)
    is_request = "id" in found
    given: Any = found.get("id")
    message_id = given if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    if "method" not in found:
        return McpMessage(method=None, id=message_id, is_request=False)
    method, name = found["method"], None
    if not isinstance(method, str):
        raise UnreadableMessageError("`method` is not a text")
    if method in NAMED_METHODS:
        params = found.get("params")
        name = _members(cast("_Pairs", params), ("name",)).get("name") if isinstance(params, tuple) else None
        if not isinstance(name, str) or len(name) > NAME_CHARS_MAX:
            raise UnreadableMessageError(
                f"`params.name` is not a text of at most {NAME_CHARS_MAX} characters"
            )
    return McpMessage(method=method, name=name, id=message_id, is_request=is_request)


_Pairs = tuple[tuple[str, Any], ...]
"""An object, with members that are named twice; arrays are lists."""


def _integer(written: str) -> float:
    """An integer; a long one as a float, as converting it exactly is slow."""
    return int(written) if len(written) <= _INTEGER_CHARS_MAX else float(written[:_INTEGER_CHARS_MAX])


_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_int=_integer)


def _decoded(body: bytes) -> object:
    is_cheap = len(body) <= _ANY_BYTES_MAX or (body.isascii() and body.count(b"\\") <= _MARKS_MAX)
    if not is_cheap or sum(map(body.count, (b",", b"{", b"["))) > _MARKS_MAX:
        raise UnreadableMessageError("the body has too many values to be read")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UnreadableMessageError("the body is not JSON in UTF-8") from None


def _members(pairs: _Pairs, names: tuple[str, ...]) -> dict[str, Any]:
    """Find members by name. Each may be there once, and in just this spelling."""
    if len(pairs) > _MEMBERS_MAX:
        raise UnreadableMessageError("an object has too many members")
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name.casefold() in names:
            if name in found or name not in names:
                raise UnreadableMessageError(f"`{name.casefold()}` is there twice, or in other letters")
            found[name] = value
    return found
