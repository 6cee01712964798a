"""Brand of pages: the name, logo and accent colour of the app that mounts them."""

from __future__ import annotations

import re
from colorsys import rgb_to_hls
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
