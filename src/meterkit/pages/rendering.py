"""The jinja2 environment of the pages, the header fields of their answers, and the brand of the app."""

from __future__ import annotations

import json
import re
from colorsys import rgb_to_hls
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from meterkit.catalog.value_parsers import (
    duration_text,
    exact_money,
    is_money,
    micro_money,
    micros_per_minor_unit,
    minor_units,
    money,
    price_text,
    rounded_money,
    size_text,
)
from meterkit.customers.history import show_value
from meterkit.decisions.grants import MICRO
from meterkit.decisions.periods import iso
from meterkit.decisions.subscription import is_for_debt
from meterkit.decisions.transitions import NO_ADDONS, addons_text, parse_addons
from meterkit.errors import MeterkitError
from meterkit.pages.refusal_words import window_words
from meterkit.problem_types import ProblemDocument, ProblemType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from starlette.requests import Request
    from starlette.routing import BaseRoute

_STATIC: Final = Path(__file__).with_name("static")
_INSTANT: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*")
NO_PAGE: Final = ProblemDocument(
    kind=ProblemType(404, "about:blank", "Not Found"), detail="There is no such page."
)
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
Rgb = tuple[int, int, int]

_HEX: Final = re.compile(r"#(?:[0-9a-fA-F]{3}){1,2}")
_PATH: Final = re.compile(r"/(?!/)[!-~]*")
_PATH_BREAKS: Final = frozenset("'\"<>\\")
_EMBEDDED: Final = re.compile(r"data:image/[a-z0-9.+-]+;base64,[A-Za-z0-9+/]+={0,2}")
_NAME_MAX: Final = 100
_BLACK: Final[Rgb] = (0, 0, 0)
_WHITE: Final[Rgb] = (255, 255, 255)
_LIGHT: Final[Rgb] = (255, 243, 205)
"""``--notice`` of pages.css: links have the least contrast on it. ``_DARK``: of the dark theme."""
_DARK: Final[Rgb] = (61, 49, 0)
_CONTRAST: Final = 4.5
"""Least contrast of text in WCAG 2.2 AA."""
_STEPS: Final = 100
_GREY_MAX: Final = 0.15
_WARM_FROM, _WARM_UNTIL = 330 / 360, 65 / 360
_LINEAR_MAX: Final = 0.04045  # Up to here sRGB is linear.


class PageRenderer:
    """Renders the templates of pages.

    Args:
        brand: shown at the top of each page; None: nothing.

    Raises:
        MeterkitError: jinja2 is not installed (the extra ``pages``).
    """

    def __init__(self, brand: Brand | None = None) -> None:
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
        self._headers = dict(HEADERS)
        if brand is not None and brand.embeds_logo:
            policy = self._headers["content-security-policy"]
            allowed = policy.replace("img-src 'self'", "img-src 'self' data:")
            self._headers["content-security-policy"] = allowed
        self._environment.globals["brand"] = brand
        self._environment.tests["for_debt"] = is_for_debt
        self._environment.filters |= {
            "money": money,
            "micro_money": rounded_money,
            "micro_per_unit": _micro_per_unit,
            "per_cent": _per_cent,
            "day": _day,
            "minute": "{:%Y-%m-%d %H:%M}".format,
            "instant": iso,
            "quantity": "{:,}".format,
            "last_day": _last_day,
            "size": size_text,
            "exact_money": micro_money,
            "unit_price": _unit_price,
            "micro_price": _micro_price,
            "is_money": is_money,
            "state": _history_value,
            "change_value": show_value,
            "title_in": _title_in,
            "window": window_words,
            "wait": _wait,
        }

    def answer(
        self, request: Request, template: str, shown: Callable[[], Mapping[str, object]], plain: object
    ) -> Response:
        """Answer with the HTML of a page, or with its ``plain`` figures if the request accepts JSON.

        ``shown`` makes the values of the template, only if it is rendered.
        """
        if wants_json(request):
            return json_answer(plain)
        rendered: str = self._environment.get_template(template).render(shown())
        return Response(rendered, headers=self._headers, media_type="text/html")


def static_routes(brand: Brand | None) -> Sequence[BaseRoute]:
    """Make the routes of stylesheets and scripts, with that of the brand's accent colour."""
    files = Mount("/static", app=StaticFiles(directory=_STATIC))
    if brand is None or brand.accent is None:
        return [files]
    css = brand_css(brand.accent)

    async def answer(_: Request) -> Response:
        return Response(css, headers=HEADERS, media_type="text/css")

    return [Route("/static/brand.css", answer), files]


def as_json(value: object) -> str:
    """Serialize a value as JSON; instants in ISO 8601, UTC."""
    return json.dumps(value, separators=(",", ":"), default=iso)


def json_answer(value: object) -> Response:
    """Answer with JSON."""
    return Response(as_json(value), headers=HEADERS, media_type="application/json")


def problem_answer(problem: ProblemDocument) -> Response:
    """Answer with a problem document."""
    return Response(problem.body, problem.kind.status, headers={**HEADERS, **problem.headers})


def wants_json(request: Request) -> bool:
    """Whether the field ``Accept`` lists JSON and not HTML, which browsers always list."""
    accept = request.headers.get("accept", "")
    kinds = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    return "application/json" in kinds and "text/html" not in kinds


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b %Y}"


def _last_day(end: datetime) -> str:
    """Format the last day of a period that ends at an instant."""
    return _day(end - timedelta(milliseconds=1))


def _wait(seconds: int) -> str:
    return duration_text(timedelta(seconds=seconds))


def _micro_per_unit(currency: str) -> int:
    return MICRO * minor_units(currency)


def _unit_price(amount: str, currency: str) -> str:
    """Format the price of a unit, given in minor units as a decimal."""
    return exact_money(Decimal(amount), currency)


def _micro_price(micros: int, per: int, currency: str) -> str:
    """Format the price of a quantity, given in millionths of the currency."""
    return price_text(Fraction(micros, micros_per_minor_unit(currency)), per, currency)


def _per_cent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _title_in(name: str, titles: Mapping[str, str]) -> str:
    return titles.get(name, name)


def _history_value(
    entry: Mapping[str, Any], when: str, plans: Mapping[str, str], addons: Mapping[str, str]
) -> str:
    """Format the value before or after a change: plans and add-ons by name, instants readable."""
    text: str = entry[when]
    if not text:
        return "none"
    kind = entry["kind"]
    if kind == "plan":
        return plans.get(text, text)
    if kind == "addons":
        return _name_addons(text, addons)
    if kind == "scheduled":
        text = _name_scheduled(text, plans, addons)
    return text.replace("_", " ") if kind == "status" else _INSTANT.sub(r"\1 \2", text)


def _name_addons(text: str, names: Mapping[str, str]) -> str:
    return addons_text((names.get(key, key), quantity) for key, quantity in parse_addons(text))


def _name_scheduled(text: str, plans: Mapping[str, str], addons: Mapping[str, str]) -> str:
    """Replace the keys in ``team with 5 seats and 1 words from 2026-12-01T00:00:00Z``, or in a part of it."""
    what, _, at = text.rpartition(" from ")
    plan, _, extras = what.rpartition(" with ") if " " in what else (what, "", "")
    parts = filter(None, extras.split(" and "))
    named = " and ".join(
        part if part.endswith((" seats", NO_ADDONS)) else _name_addons(part, addons) for part in parts
    )
    return f"{' with '.join(filter(None, (plans.get(plan, plan), named)))} from {at}"


@dataclass(frozen=True, slots=True)
class Brand:
    """Name, logo and accent colour of an app, for :func:`usage_page` and :func:`operator_pages`.

    Attributes:
        name: shown at the top of each page.
        logo_url: a path of the app, such as ``/logo.svg``, or the image itself, ``data:image/…;base64,…``:
            pages load nothing from other hosts. None: no logo.
        accent: colour of links, buttons, charts and bars as ``#rgb`` or ``#rrggbb``; each theme darkens or
            lightens it until text is readable. Bars stay blue if it could be taken for amber or red. None:
            blue.

    Raises:
        MeterkitError: a value is invalid.
    """

    name: str
    logo_url: str | None = None
    accent: str | None = None

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > _NAME_MAX:
            raise MeterkitError(
                f"brand: found name {self.name!r:.80}; a name has 1 to {_NAME_MAX} characters"
            )
        if self.logo_url is not None and not (_is_path(self.logo_url) or self.embeds_logo):
            raise MeterkitError(
                f"brand: found logo_url {self.logo_url!r:.80}; pages load nothing from other hosts: serve the"
                " logo by your app and give its path, such as /logo.svg, or give the image itself as"
                " data:image/png;base64,…"
            )
        if self.accent is not None and _HEX.fullmatch(self.accent) is None:
            raise MeterkitError(
                f"brand: found accent {self.accent!r:.80}; it is a colour such as #0a58ca or #06c"
            )

    @property
    def embeds_logo(self) -> bool:
        """Whether the logo is in its address, which the content security policy must allow."""
        return self.logo_url is not None and _EMBEDDED.fullmatch(self.logo_url) is not None


def brand_css(accent: str) -> str:
    """Stylesheet with an accent colour for the light and the dark theme."""
    light, dark = (_readable(_parse(accent), on) for on in (_LIGHT, _DARK))
    return (
        f":root {{ {_rules(light)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {_rules(dark)} }} }}\n"
    )


def _rules(accent: Rgb) -> str:
    text = max(_WHITE, _BLACK, key=lambda colour: _contrast(colour, accent))
    bars = "" if _is_warm(accent) else f" --enough: {_format(accent)};"
    return f"--accent: {_format(accent)}; --on-accent: {_format(text)};{bars}"


def _is_warm(accent: Rgb) -> bool:
    """Whether a colour is red, orange or yellow: bars in it would look like warnings."""
    hue, _, saturation = rgb_to_hls(*(part / 255 for part in accent))
    return saturation > _GREY_MAX and not _WARM_UNTIL < hue < _WARM_FROM


def _is_path(url: str) -> bool:
    return _PATH.fullmatch(url) is not None and _PATH_BREAKS.isdisjoint(url)


def _parse(accent: str) -> Rgb:
    digits = accent[1:] if len(accent) == len("#rrggbb") else "".join(2 * digit for digit in accent[1:])
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _format(colour: Rgb) -> str:
    return f"#{bytes(colour).hex()}"


def _readable(accent: Rgb, on: Rgb) -> Rgb:
    """Mix black or white into a colour until its contrast to a background is enough for text."""
    return next(colour for colour in _mixed(accent, on) if _contrast(colour, on) >= _CONTRAST)


def _mixed(accent: Rgb, on: Rgb) -> Iterator[Rgb]:
    towards = max(_WHITE, _BLACK, key=lambda colour: _contrast(colour, on))
    for step in range(_STEPS + 1):
        red, green, blue = (
            round(own + (end - own) * step / _STEPS) for own, end in zip(accent, towards, strict=True)
        )
        yield red, green, blue


def _contrast(one: Rgb, other: Rgb) -> float:
    """Contrast ratio of two colours by WCAG 2.2."""
    lower, higher = sorted((_luminance(one), _luminance(other)))
    return (higher + 0.05) / (lower + 0.05)


def _luminance(colour: Rgb) -> float:
    red, green, blue = (
        part / 12.92 if part <= _LINEAR_MAX else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
