"""The built pages: whole, without warnings, and nothing in them is loaded from another host."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from shutil import which
from typing import Final
from urllib.parse import urlsplit

import pytest

import meterkit

SITE: Final = os.environ.get("METERKIT_SITE")
CHROMIUM: Final = os.environ.get("METERKIT_CHROMIUM") or which("chromium")
# What a browser loads by itself; links that somebody has to follow are not among them.
LOADS: Final = {
    "src": "audio embed iframe img input script source video",
    "srcset": "img source",
    "href": "image link use",
    "xlink:href": "image use",
    "data": "object",
    "poster": "video",
}
IN_STYLES: Final = re.compile(r"""@import\s+["']([^"']+)|url\(\s*["']?([^"')]+)""")
IN_SCRIPTS: Final = re.compile(r"""["'`]((?:https?:)?//[A-Za-z0-9][A-Za-z0-9.-]*\.[a-z]{2,}[^"'`]*)""")
# Names of kinds of XML, which nobody fetches.
NAMESPACE: Final = re.compile(r"http://www\.w3\.org/(\d{4}/(svg|xhtml|xlink|MathML)|XML/1998/namespace)")


def is_foreign(address: str) -> bool:
    """Whether an address names a host, which none of ours does."""
    parts = urlsplit(address.strip())
    return bool(parts.netloc) and not NAMESPACE.match(address)


class Loaded(HTMLParser):
    """Collects the addresses that a page has a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link" and given.get("rel") in {"canonical", "prev", "next", "alternate"}:
            return
        self.found += [given[name] for name, tags in LOADS.items() if name in given and tag in tags.split()]
        self.found += in_style(given.get("style", ""))


def in_style(text: str) -> list[str]:
    return [imported or named for imported, named in IN_STYLES.findall(text)]


def foreign_in(path: Path) -> Iterator[str]:
    text = path.read_text("utf-8")
    found: list[str] = []
    if path.suffix == ".html":
        page = Loaded()
        page.feed(text)
        found += page.found
        for script in re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL):
            found += IN_SCRIPTS.findall(script)
        for style in re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL):
            found += in_style(style)
    elif path.suffix in {".css", ".svg"}:
        found += in_style(text)
    elif "lunr" not in path.parts and path.name != "search_index.js":  # The text of the pages, as data.
        found += IN_SCRIPTS.findall(text)
    return (address for address in found if is_foreign(address))


@pytest.fixture(scope="module")
def site() -> Path:
    """The pages that `make docs` has built; it runs these tests."""
    if SITE is None:
        pytest.skip("the pages are not built: make docs")
    return Path(SITE)


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    paths = [path for path in site.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"}]
    assert len(paths) > 50
    assert {
        str(path.relative_to(site)): found for path in paths if (found := sorted(set(foreign_in(path))))
    } == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">'),
        ("b.html", '<img alt="" src="//www.gravatar.com/avatar/1">'),
        ("c.html", "<script>fetch('https://api.github.com/repos/a/b')</script>"),
        ("d.css", "@import 'https://example.com/a.css';"),
        ("e.css", "@font-face { src: url(https://cdnjs.cloudflare.com/a.woff2) }"),
        ("f.js", 'load("https://unpkg.com/mermaid@11/dist/mermaid.min.js")'),
        ("g.svg", '<style>@font-face { src: url("https://cdnjs.cloudflare.com/a.woff") }</style>'),
    ],
)
def test_what_would_be_loaded_from_another_host_is_noticed(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert len(list(foreign_in(tmp_path / name))) == 1


def test_links_that_a_reader_follows_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="https://example.com/">there</a><svg xmlns="http://www.w3.org/2000/svg"/>'
    )
    assert list(foreign_in(tmp_path / "a.html")) == []


def test_pictures_show_the_pages_in_both_themes_or_are_left_out(site: Path) -> None:
    taken = {path.stem: path.read_bytes() for path in (site / "assets/pictures").glob("*.png")}
    assert len(set(taken.values())) == (6 if CHROMIUM else 0)
    for page, name in (("usage", "pages"), ("usage-summary", "index"), ("operator", "operator")):
        shown = re.findall(r'src="assets/pictures/([\w-]+)\.png', (site / f"{name}.html").read_text("utf-8"))
        assert shown == ([f"{page}-light", f"{page}-dark"] if CHROMIUM else [])
        assert {f"{page}-light", f"{page}-dark"} <= set(taken) or not CHROMIUM


def test_every_public_name_stands_in_the_reference(site: Path) -> None:
    told = "".join(path.read_text("utf-8") for path in (site / "api").glob("*.html"))
    others = {"Catalog": "catalog.Catalog", "identify": "identify.header"}  # Modules have pages of their own.
    names = [others.get(name, name) for name in dir(meterkit)]
    assert [name for name in names if f'id="meterkit.{name}"' not in told] == []


def test_search_has_all_guides_and_needs_no_server(site: Path) -> None:
    script = (site / "search/search_index.js").read_text("utf-8")
    index = json.loads(script.removeprefix("var __index = "))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"quickstart.html", "plans-file.html", "api/kit.html", "troubleshooting.html"} <= found
    assert not any(location.startswith("design/") for location in found)
    assert (site / "assets/javascripts/iframe-worker.js").is_file()
    assert "assets/javascripts/iframe-worker.js" in (site / "index.html").read_text("utf-8")
