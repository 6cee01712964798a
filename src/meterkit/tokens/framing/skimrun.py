"""Reading JSON objects that are too large to be kept, or are not well-formed, one after the other."""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import TYPE_CHECKING, Final

from meterkit.tokens.framing.nesting import span
from meterkit.tokens.framing.skim import Skim
from meterkit.tokens.places import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.tokens.framing.work import Work
    from meterkit.tokens.places import Place
    from meterkit.tokens.shape import Table

__all__ = ["Encoded", "SkimRun"]

_BYTES: Final = re.compile(rb'"bytes"\s*:\s*"')
_BYTES_NAME_MAX: Final = 64
_SEPARATORS: Final = re.compile(rb"[ \t\r\n,]*+")


class SkimRun:
    """Reads JSON objects that follow one another, each of any size, and passes on what was kept of each.

    Args:
        emit: takes what was kept of an object, and the bytes of text in it.
        spoiled: is told that something that should be an object was none, or had no end.
        place: where the objects stand.
    """

    __slots__ = ("_emit", "_place", "_skim", "_spoiled", "_untouched")

    def __init__(
        self, emit: Callable[[Table, int], None], spoiled: Callable[[], None], place: Place = ROOT
    ) -> None:
        self._emit = emit
        self._spoiled = spoiled
        self._place = place
        self._skim = Skim(place)
        self._untouched = True

    @property
    def text_bytes(self) -> int:
        """Bytes of text in the object that has not come to its end."""
        return self._skim.text_bytes

    def feed(self, data: bytes) -> Work:
        """Take the next bytes."""
        data = self._skim.resumed(data)
        at = 0
        while at < len(data) and not self._skim.broken:
            if self._untouched:
                at = span(_SEPARATORS, data, at, len(data))
                self._untouched = at == len(data)
            at = self._skim.read(data, at)
            if self._skim.ended:
                self._pass()
            yield

    def end(self) -> None:
        """Nothing follows: of what has not come to its end, what there is of it is passed on."""
        if not self._untouched:
            self._spoiled()
            self._pass()

    def _pass(self) -> None:
        skim, self._skim = self._skim, Skim(self._place)
        self._untouched = True
        kept = skim.result()
        if kept is not None:
            self._emit(kept, skim.text_bytes)


class Encoded:
    """Reads the JSON that another JSON object has in base64, as Bedrock's frames do.

    Args:
        data: reads what was encoded.
    """

    __slots__ = ("_data", "_head", "_rest")

    def __init__(self, data: SkimRun) -> None:
        self._data = data
        self._head: bytes | None = b""
        self._rest = b""

    def feed(self, data: bytes) -> Work:
        """Take the next bytes of the outer object."""
        if self._head is not None:
            data = self._head + data
            begin = _BYTES.search(data)
            if begin is None:
                self._head = data[-_BYTES_NAME_MAX:]
                return
            self._head, data = None, data[begin.end() :]
        data = self._rest + data
        whole = len(data) // 4 * 4
        end = data.find(b'"')
        if end >= 0:
            self._head, data = b"", data[:end]
            whole = end
        self._rest = data[whole:]
        try:
            decoded = a2b_base64(data[:whole])
        except ValueError:
            decoded = b"\0"  # It spoils what is in it.
        yield from self._data.feed(decoded)

    def end(self) -> None:
        """The outer object has come to its end."""
        self._data.end()
