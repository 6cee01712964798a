"""The jinja2 environment of the pages, and the header fields of their answers."""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.amounts import minor_units, money, size_text
from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import iso
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

STATIC: Final = Path(__file__).with_name("static")
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*")
HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "same-origin",
    "vary": "Accept",
    "x-content-type-options": "nosniff",
}


class Pages:
    """Renders templates.

    Raises:
        MeterkitError: jinja2 is not installed (the extra ``pages``).
    """

    def __init__(self) -> None:
        try:
            jinja: Any = import_module("jinja2")
        except ImportError as error:
            raise MeterkitError(
                "jinja2 is required for pages. Install with: pip install 'meterkit[pages]'"
            ) from error
        self._environment = jinja.Environment(
            loader=jinja.PackageLoader("meterkit.pages"),
            autoescape=True,
            undefined=jinja.StrictUndefined,  # A misspelled name must not leave a gap in a page.
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "money": money,
            "micro_money": _micro_money,
            "micro_per_unit": _micro_per_unit,
            "per_cent": _per_cent,
            "day": _day,
            "minute": _minute,
            "instant": iso,
            "quantity": _quantity,
            "last_day": _last_day,
            "size": size_text,
            "state": _state,
            "title_in": _title_in,
        }

    def render(self, template: str, context: Mapping[str, object]) -> str:
        """The HTML of a page."""
        rendered: str = self._environment.get_template(template).render(context)
        return rendered


def wants_json(accept: str) -> bool:
    """Whether an ``Accept`` field names JSON and not HTML, which browsers always name."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    return "application/json" in kinds and "text/html" not in kinds


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _last_day(end: datetime) -> str:
    """The day before an instant that ends a period."""
    return _day(end - timedelta(milliseconds=1))


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _micro_money(amount: int, currency: str) -> str:
    return money(round(Fraction(amount, MICRO)), currency)


def _micro_per_unit(currency: str) -> int:
    return MICRO * minor_units(currency)


def _per_cent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _quantity(number: int) -> str:
    return f"{number:,}"


def _title_in(name: str, titles: Mapping[str, str]) -> str:
    return titles.get(name, name)


def _state(entry: Mapping[str, Any], when: str, plans: Mapping[str, str]) -> str:
    """What an entry of the history says of before or after: plans by name, instants as people write them."""
    said: str = entry[when] or "none"
    if entry["kind"] == "plan":
        return plans.get(said, said)
    return said.replace("_", " ") if entry["kind"] == "status" else _INSTANT.sub(r"\1 \2", said)
