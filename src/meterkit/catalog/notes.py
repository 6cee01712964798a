"""What a plans file allows and may surprise, told in one line."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meterkit.catalog.models import Catalog, Enforcement, Note, NoteKind

__all__ = ["log_notes", "summary"]

_logger = logging.getLogger("meterkit")
_plans_logger = logging.getLogger("meterkit.plans")

_SHOWN_MAX: Final = 10
_TITLES: Final[dict[NoteKind, str]] = {
    "without_effect": "no effect yet",
    "billed_from_first_unit": "billed from the first unit, as nothing is included",
    "never_reached": "routes that an earlier one stands before",
}
_ENFORCEMENTS: Final = {
    "shadow": "everything is decided and counted, and nobody is refused",
    "off": "requests pass, and nothing is decided or counted",
}


def summary(notes: Iterable[Note]) -> str:
    """The notes in one line, by their kinds, with their places in the file; empty where there are none.

    Those of the kind ``informs`` are left out: some of these keys are required, and nobody can end them.
    """
    told: list[str] = []
    for kind, title in _TITLES.items():
        places = list(dict.fromkeys(f"{note.path} (line {note.line})" for note in notes if note.kind == kind))
        if places:
            rest = len(places) - _SHOWN_MAX
            more = f" and {rest} more" if rest > 0 else ""
            told.append(f"{title}: {', '.join(places[:_SHOWN_MAX])}{more}")
    return "; ".join([*told, "`meterkit check` says more"]) if told else ""


def log_notes(catalog: Catalog, setting: Enforcement | None) -> None:
    """Log what the catalog may surprise with, and that it is not enforced where it is not.

    Args:
        catalog: what is sold, as it is enforced.
        setting: the setting ``enforcement``; None: the plans file decides.
    """
    found = catalog.enforcement
    told = summary(catalog.notes)
    if told and found != "off":
        _plans_logger.warning("%s: %s", catalog.source, told)
    if found != "on":
        origin = catalog.source if setting is None else "the setting enforcement"
        _logger.warning("enforcement is %s (%s): %s", found, origin, _ENFORCEMENTS[found])
