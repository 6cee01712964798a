"""Boxes, arrows and words of an SVG that is readable on light and on dark ground."""

from __future__ import annotations

from html import escape

FONT = "ui-sans-serif, system-ui, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'Noto Sans Mono', 'DejaVu Sans Mono', monospace"
LIGHT = {
    "ground": "#ffffff",
    "ink": "#16302f",
    "quiet": "#5b706e",
    "line": "#6f8683",
    "box": "#ffffff",
    "edge": "#9fb5b1",
    "tint": "#e3f1ee",
    "strong": "#0d6b66",
    "on-strong": "#ffffff",
    "warm": "#fbe6cb",
    "warm-edge": "#c9761a",
    "stop": "#f8dcd7",
    "stop-edge": "#b3402c",
    "peer": "#b9c7c4",
}
DARK = {
    "ground": "#0d1117",
    "ink": "#dcebe8",
    "quiet": "#9db3af",
    "line": "#89a29e",
    "box": "#17231f",
    "edge": "#49625e",
    "tint": "#1b3531",
    "strong": "#47b8a9",
    "on-strong": "#06211e",
    "warm": "#3c2c14",
    "warm-edge": "#e8a24d",
    "stop": "#43211b",
    "stop-edge": "#e98370",
    "peer": "#4d625e",
}
KINDS = {
    "box": ("box", "edge", "ink"),
    "tint": ("tint", "edge", "ink"),
    "strong": ("strong", "strong", "on-strong"),
    "warm": ("warm", "warm-edge", "ink"),
    "stop": ("stop", "stop-edge", "ink"),
}


def _colours(colours: dict[str, str]) -> str:
    return " ".join(f"--mk-{name}: {value};" for name, value in colours.items())


class Drawing:
    """One SVG. In a page the style is left out, and its colours are the page's."""

    def __init__(self, name: str, width: int, height: int, *, title: str, told: str) -> None:
        self.name = name
        self._width = width
        self._height = height
        self._title = title
        self._told = told
        self._parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 14,
        colour: str = "ink",
        anchor: str = "start",
        bold: bool = False,
        mono: bool = False,
        boxed: bool = False,
    ) -> None:
        """Words; each line of them 1.35 times the size below the one before."""
        weight = ' font-weight="650"' if bold else ""
        halo = (
            ""
            if boxed
            else "; paint-order: stroke; stroke: var(--mk-ground); stroke-width: 5px; stroke-linejoin: round"
        )
        family = f' font-family="{MONO}"' if mono else ""
        for nth, line in enumerate(words.split("\n")):
            place = f'x="{x:g}" y="{y + nth * size * 1.35:g}" font-size="{size:g}" text-anchor="{anchor}"'
            self._parts.append(
                f'<text {place}{weight}{family} style="fill: var(--mk-{colour}){halo}">{escape(line, quote=False)}</text>'
            )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str = "",
        *,
        kind: str = "box",
        small: str = "",
    ) -> None:
        """A box with a heading in its middle, and smaller words below it."""
        ground, edge, ink = KINDS[kind]
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" stroke-width="1.4"'
            f' style="fill: var(--mk-{ground}); stroke: var(--mk-{edge})"/>'
        )
        lines, below = (words.count("\n") + 1 if words else 0), (small.count("\n") + 1 if small else 0)
        total = lines * 19 + below * 16.2
        top = y + height / 2 - total / 2
        if words:
            self.text(x + width / 2, top + 14.5, words, colour=ink, anchor="middle", bold=True, boxed=True)
        if small:
            quiet = ink if kind == "strong" else "quiet"
            self.text(
                x + width / 2,
                top + lines * 19 + 12,
                small,
                size=12,
                colour=quiet,
                anchor="middle",
                boxed=True,
            )

    def line(
        self,
        *points: tuple[float, float],
        colour: str = "line",
        dashed: bool = False,
        head: bool = True,
        wide: float = 1.6,
    ) -> None:
        """A line through points, with an arrow's head at its end."""
        way = " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        end = f' marker-end="url(#{self.name}-{colour})"' if head else ""
        self._parts.append(
            f'<path d="M{way}" fill="none" stroke-width="{wide:g}"{dash}{end} style="stroke: var(--mk-{colour})"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, *, colour: str, round_: float = 3) -> None:
        """A filled bar."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}"'
            f' style="fill: var(--mk-{colour})"/>'
        )

    def svg(self) -> str:
        """The file."""
        heads = "".join(
            f'<marker id="{self.name}-{colour}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
            f' orient="auto-start-reverse"><path d="M0 0.6L7.4 4L0 7.4z" style="fill: var(--mk-{colour})"/></marker>'
            for colour in ("line", "strong", "stop-edge", "warm-edge")
        )
        inside = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._width} {self._height}" role="img"'
            f' aria-labelledby="{self.name}-title {self.name}-told" font-family="{FONT}">\n'
            f'<title id="{self.name}-title">{escape(self._title)}</title>\n'
            f'<desc id="{self.name}-told">{escape(self._told)}</desc>\n'
            f"<style>svg {{ {_colours(LIGHT)} }}"
            f" @media (prefers-color-scheme: dark) {{ svg {{ {_colours(DARK)} }} }}</style>\n"
            f"<defs>{heads}</defs>\n{inside}\n</svg>\n"
        )
