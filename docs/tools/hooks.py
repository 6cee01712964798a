"""What the build adds to the pages: drawings in the page, screens, words that wrap, and tables made from the code.

Pages load nothing from another host. So drawings are files of ours: Mermaid, for one, is loaded by the theme
from elsewhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

import pictures
import screens
import tables

import meterkit

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
IMAGE = re.compile(
    r'<p>\s*<img alt="([^"]*)" src="[^"]*?assets/(drawings|screens)/([\w-]+)\.svg"\s*/?>\s*</p>'
)
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?(?:[a-z_]+\.)*")
# A block of no language: nothing in it is coloured.
TEXT = re.compile(r'<div class="highlight">(<pre><span></span><code>[^<]*</code></pre>)')
# Without a space, and longer than the longest setting: an address, a path.
LONG = re.compile(r"<code>([^\s<]{37,})</code>")
# The repository lacks what is made here: elsewhere, such as on GitHub, these pictures would be dead.
MADE_HERE = re.compile(r"^<!-- (!\[[^]]*\]\(assets/(?:pictures|screens)/[^)]*\)) -->$", re.MULTILINE)
PICTURE = re.compile(r"^!\[[^]]*\]\(assets/pictures/[^)]*\)$\n?", re.MULTILINE)
STYLE = re.compile(r"<style>.*?</style>\s*", re.DOTALL)
REFERENCE = re.compile(r"api/|(?:benchmarks|changelog|promises|redis-keys|runbook)\.md$")
# Scripts of the theme for what these pages do not use: diagrams, badges of repositories, old browsers.
HOST = re.compile(r"https://(?:unpkg\.com|api\.github\.com|gitlab\.com)/[^\"`]*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the screens of the command line, made by running it, and pictures of the pages, taken by a browser."""
    for name, text in screens.made().items():
        files.append(File.generated(config, f"assets/screens/{name}.svg", content=text))
    for name, picture in pictures.made().items():
        files.append(File.generated(config, f"assets/pictures/{name}.png", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Fill in what is made from the code or stands elsewhere in the repository."""
    if page.file.src_uri.startswith("design/"):
        page.meta["search"] = {"exclude": True}  # A search is for how to use it.
    elif REFERENCE.match(page.file.src_uri):
        page.meta["search"] = {"boost": 0.3}  # Guides come first.
    markdown = MADE_HERE.sub(r"\1", markdown)
    if not pictures.made():
        markdown = PICTURE.sub("", markdown)
    for marker, made in MADE.items():
        if marker in markdown:
            markdown = markdown.replace(marker, made())
    return markdown


def changelog() -> str:
    """The changelog of the repository."""
    return (DOCS.parent / "CHANGELOG.md").read_text("utf-8")


def types() -> str:
    """Every public name that no other page of the reference has."""
    told = "".join(path.read_text("utf-8") for path in (DOCS / "api").glob("*.md"))
    left = [
        name for name in meterkit.__all__ if name not in ELSEWHERE and f"::: meterkit.{name}\n" not in told
    ]
    return "\n\n".join(f"::: meterkit.{name}{OPTIONS.get(name, '')}" for name in left)


ELSEWHERE = {"Catalog", "identify"}  # Pages of their own, of more than that.
OPTIONS = {"Settings": "\n    options:\n      members: [load, flushes, live]"}

MADE = {
    "<!-- CHANGELOG.md -->": changelog,
    "<!-- commands -->": tables.commands,
    "<!-- plans-keys -->": tables.plans_keys,
    "<!-- types -->": types,
}


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Put drawings into the page, where they follow its colours, and tidy the roles of docstrings."""
    html = TEXT.sub(_said, LONG.sub(r'<code class="mk-long">\1</code>', html))
    return IMAGE.sub(_inline, ROLE.sub("<code>", html))


def _said(found: re.Match[str]) -> str:
    block = found.group(1)
    return f'<div class="highlight{"" if "─" in block else " mk-said"}">{block}'


def _inline(found: re.Match[str]) -> str:
    said, kind, name = found.groups()
    if kind == "screens":
        svg = screens.made()[name]
    else:
        svg = STYLE.sub("", (DOCS / "assets" / kind / f"{name}.svg").read_text("utf-8"))
    return f'<figure class="mk-figure mk-{kind.removesuffix("s")}" aria-label="{said}">{svg}</figure>'


def on_post_build(config: MkDocsConfig) -> None:
    """No script of the site names another host to load something from."""
    scripts = Path(config.site_dir) / "assets" / "javascripts"
    for path in scripts.glob("*.js"):
        path.write_text(HOST.sub("", path.read_text("utf-8")), "utf-8")
    for path in scripts.rglob("*.map"):
        path.unlink()
