"""A note: something in a plans file that is allowed, and may surprise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal["informs", "billed_from_first_unit", "never_asked", "never_reached"]


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
            requests of this one.
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
