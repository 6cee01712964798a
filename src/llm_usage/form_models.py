"""Models that a multipart form names, found while its bytes pass."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from llm_usage.call_usage import names_of
from llm_usage.json_readings import values_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_PARTS_MAX: Final = 2_048
_BOUNDARIES_MAX: Final = 4
_PART_HEAD_BYTES: Final = 10 << 10
_VALUE_BYTES_MAX: Final = 1 << 10
_BOUNDARY: Final = re.compile(rb"boundary\s*=\s*(?:\"([^\"]+)\"|([^;,\s\"]+))", re.IGNORECASE)
_FIELD: Final = re.compile(rb"\bname\*?\s*=\s*(?:[\w-]*''|[\"'])?(model)(?![\w.-])", re.IGNORECASE)


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
