"""Errors and notes of a plans file: their places, lists and wording."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from meterkit.errors import PlansError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NoteKind = Literal["informs", "billed_from_first_unit", "never_asked", "never_reached", "no_rate"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something in a plans file that is allowed, and may surprise.

    Attributes:
        file: the path as it was given.
        line: 1-based, and so is ``column``.
        path: where in the document, dotted: ``plans.pro.trial``.
        kind: ``informs``: a consequence of what is written; ``billed_from_first_unit``: a plan
            includes nothing of a meter reported to Stripe; ``never_asked``: a limit that no route asks for;
            ``never_reached``: an earlier route takes all
            requests of this one; ``no_rate``: a plan has a ceiling and no rate.
        message: what comes of it, and what to write where something else is meant.
    """

    file: str
    line: int
    column: int
    path: str
    kind: NoteKind
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.path}: {self.message}"


_SHOWN_MAX: Final = 60
_GUESSED_MIN: Final = 3
_LISTED_MAX: Final = 20
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Location in a plans file: 1-based line and column, and the dotted path in the document."""

    line: int
    column: int
    path: str

    def child(self, key: str, line: int = 0, column: int = 0) -> FilePlace:
        """The place of the entry ``key`` of the map that stands here."""
        step = key if _PLAIN_KEY.fullmatch(key) else quoted(key)
        return FilePlace(line, column, f"{self.path}.{step}" if self.path else step)

    def item(self, index: int, line: int = 0, column: int = 0) -> FilePlace:
        """The place of an item of the list that stands here."""
        return FilePlace(line, column, f"{self.path}[{index}]")


class RefusedError(ValueError):
    """A text has no meaning where it stands.

    Attributes:
        reason: what is wrong, or what is allowed.
        meant: what was probably meant, or None.
    """

    def __init__(self, reason: str, *, meant: str | None = None) -> None:
        self.reason = reason
        self.meant = meant
        super().__init__(f"{reason}; did you mean {meant}?" if meant else reason)


class Problems:
    """Everything found wrong with one file, each thing once; and what is right but may surprise.

    Args:
        source: the file's path as it was given.
        currencies: of the file, by which its amounts are read; none: what the file says of them is refused.
        currency: whose amounts are read.
    """

    def __init__(self, source: str, currencies: tuple[str, ...] = ("",), currency: str = "") -> None:
        self.source = source
        self.currencies = currencies
        self.currency = currency
        self._found: dict[Problem, None] = {}
        self._settled: set[FilePlace] = set()
        self._notes: dict[Note, None] = {}

    def refuse(self, place: FilePlace, message: str, *, settles: bool = False) -> None:
        """Note that what stands at ``place`` is wrong; one that ``settles`` is the last word on it."""
        if place in self._settled:
            return
        if settles:
            self._settled.add(place)
        self._found[Problem(self.source, place.line, place.column, place.path, message)] = None

    def stop(self, place: FilePlace, message: str) -> NoReturn:
        """Refuse what leaves nothing to go on with.

        Raises:
            PlansError: always; with everything noted until here.
        """
        self.refuse(place, message)
        raise self.error() from None

    def note(self, place: FilePlace, kind: NoteKind, message: str) -> None:
        """Note that what stands at ``place`` is allowed and may surprise."""
        note = Note(self.source, place.line, place.column, place.path, kind, message)
        self._notes[note] = None

    def extend(self, other: Problems) -> None:
        """Add what ``other`` holds: all that is wrong, and notes on places that have none of that kind."""
        self._found.update(other._found)
        self._settled.update(other._settled)
        noted = {(note.path, note.kind) for note in self._notes}
        self._notes.update({note: None for note in other._notes if (note.path, note.kind) not in noted})

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes in the order of the file."""
        return tuple(sorted(self._notes, key=lambda note: (note.line, note.column)))

    def error(self) -> PlansError:
        """All problems in the order of the file."""
        return PlansError(sorted(self._found, key=lambda problem: (problem.line, problem.column)))


def quoted(text: str) -> str:
    """A text as messages show it: quoted, escaped and cut to a bearable length."""
    if len(text) <= _SHOWN_MAX:
        return repr(text)
    return f"{text[:_SHOWN_MAX]!r}… ({len(text)} characters)"


def listed(words: Iterable[str], most: int = _LISTED_MAX) -> str:
    """Words as messages list them: ``a, b, c``; of a long list the first ones and how many more."""
    every = list(words)
    if not every:
        return "none"
    rest = len(every) - most
    return ", ".join(every) if rest <= 0 else f"{', '.join(every[:most])} and {rest} more"


def nearest(text: str, words: Iterable[str]) -> str | None:
    """The word that ``text`` was probably meant to be, or None."""
    if not _GUESSED_MIN <= len(text) <= _SHOWN_MAX:
        return None
    by_lower = {word.lower(): word for word in words}
    found = difflib.get_close_matches(text.lower().replace(" ", "_"), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def suggestion(text: str, words: Iterable[str]) -> str:
    """``; did you mean 'x'?`` where something is near, else nothing."""
    word = nearest(text, words)
    return f"; did you mean {word!r}?" if word else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that the file does not declare."""
    names = list(known)
    return f"there is no {kind} {quoted(name)}; declared {kind}s: {listed(names)}{suggestion(name, names)}"


def find_mistakes(lay_over: Callable[[], object]) -> Sequence[str]:
    """Mistakes for which overrides are refused, by their paths; empty: there are none.

    Args:
        lay_over: lays them over a plan strictly.
    """
    try:
        lay_over()
    except PlansError as error:
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return ()
