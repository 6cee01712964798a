"""Incremental search of a multipart form for the models that it names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from llm_usage.call_usage import names_of
from llm_usage.json_readings import values_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_PARTS_MAX: Final = 2_048
_BOUNDARIES_MAX: Final = 4
# Bytes of a part that are searched: its headers, and the beginning of its value.
_PART_BYTES: Final = 10 << 10
_VALUE_BYTES_MAX: Final = 1 << 10
_BOUNDARY: Final = re.compile(rb"boundary\s*=\s*(?:\"([^\"]+)\"|([^;,\s\"]+))", re.IGNORECASE)
# A field `model`, as some parser reads it: `name="model"`, `name=Model`, `name*=utf-8''model` (RFC 5987).
_MODEL_FIELD: Final = re.compile(rb"\bname\*?\s*=\s*(?:[\w-]*''|[\"'])?(model)(?![\w.-])", re.IGNORECASE)


class BodyModelReader(Protocol):
    """Finds the models that a request body names while it passes."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body."""

    def models(self) -> tuple[str, ...]:
        """The models that were found by now."""
        ...


class FormModelReader:
    """Reads the fields ``model`` of a multipart form, which may stand behind its files.

    It keeps no file, and stops after 2,048 parts: the usual frameworks refuse more than 1,000.

    Args:
        boundary: between the parts, without the two dashes before it.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"--" + boundary
        self._parts_left = _PARTS_MAX
        # The end of the bytes so far: a short part that may go on, or less than a delimiter that may be cut.
        self._tail: bytes = b""
        # Each model after the name of its field as it is spelled.
        self._found: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the body."""
        if self._parts_left <= 0:
            return
        window = self._tail + data
        _, *parts = window.split(self._delimiter, self._parts_left)
        if len(parts) == self._parts_left:
            parts.pop()  # All that is left, unsplit.
            self._parts_left = 0
        elif parts and len(parts[-1]) < _PART_BYTES:
            self._tail = self._delimiter + parts.pop()  # Too short to be searched already.
        else:
            self._tail = window[1 - len(self._delimiter) :]
        self._parts_left -= len(parts)
        self._found += self._find_models(parts)

    def models(self) -> tuple[str, ...]:
        """The models that were found by now, also in a part that has not ended."""
        last = self._find_models(self._tail.split(self._delimiter)[1:])
        return names_of(values_read([*self._found, *last]))

    @staticmethod
    def _find_models(parts: Iterable[bytes]) -> Iterator[tuple[str, str]]:
        """Yield each model in some parts, after the name of its field."""
        for part in parts:
            head, blank, value = part[:_PART_BYTES].replace(b"\r\n", b"\n").partition(b"\n\n")
            field = _MODEL_FIELD.search(head) if blank else None
            if field is not None:
                yield field[1].decode(), value[:_VALUE_BYTES_MAX].decode("utf-8", "replace")


def is_form(content_type: bytes) -> bool:
    """Whether a content type is that of a form, multipart or URL-encoded."""
    kind = content_type.lower()
    return b"multipart/" in kind or b"x-www-form-urlencoded" in kind


def form_readers(content_type: bytes, body: bytes) -> list[FormModelReader]:
    """Readers of a multipart form, one for each boundary that its content type names; none for other bodies.

    Args:
        content_type: of the request.
        body: its first bytes. If the content type names no boundary, their first line does.
    """
    if b"multipart/" not in content_type.lower():
        return []
    boundaries = dict.fromkeys(quoted or plain for quoted, plain in _BOUNDARY.findall(content_type))
    first_line = body[:_PART_BYTES].lstrip().partition(b"\n")[0].rstrip()
    if not boundaries and first_line.startswith(b"--") and first_line.strip(b"-"):
        boundaries = {first_line.removeprefix(b"--"): None}
    return [FormModelReader(boundary) for boundary in list(boundaries)[:_BOUNDARIES_MAX]]
