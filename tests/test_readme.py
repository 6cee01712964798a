"""The README and the documentation: what they show is loaded, run and found."""
# Internals: the table of commands, with which 300 pages are compared.

from __future__ import annotations

import ast
import asyncio
import codeop
import re
import runpy
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
import yaml

from drivers.help_pages import COMMAND_LINE
from meterkit import Settings
from meterkit.catalog import loads

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "src").rglob("*.md"),
    ]
)
RECIPES = ROOT / "docs/recipes.md"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)")
PICTURE = re.compile(r"(?:!\[[^]]*\]\(|src(?:set)?=\")([^)#\"]+)")
COMMAND = re.compile(r"(?:^\$ |`)meterkit ([a-z][^`\n]*)", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
NO_PROSE = re.compile(r"^ *```.*?^ *```$|^ *\|.*?$|<!--.*?-->|]\([^)]*\)", re.MULTILINE | re.DOTALL)
WORD = re.compile(r"\w\S*")
WORDS_MAX = 900
GUIDES_WORDS_MAX = 40_000
# Generated, or lists.
NO_GUIDES = ("api/", "design/decisions/", "design/contract-coverage", "benchmarks", "changelog")
# Routes that an app mounts, and when plans with Stripe's own tiers change: these notes cost nobody anything.
NO_SURPRISE = {"routes", "plans"}
# What a fragment of a plans file is completed with.
REST = """\
schema: 1
currency: usd
default_plan: free
meters:
  requests: {unit: request}
plans:
  free:
    price: {amount_cents: 0, interval: month}
"""


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def merged(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A plans file with the keys of a recipe: maps are merged, other values replaced."""
    both = {key for key in base.keys() & part if isinstance(base[key], dict) and isinstance(part[key], dict)}
    return base | part | {key: merged(base[key], part[key]) for key in both}


def completed(text: str, page: Path) -> str:
    """A whole plans file: recipes change the file of their page, other fragments get what they leave out."""
    if text.startswith("schema: 1"):
        return text
    given: dict[str, Any] = yaml.safe_load(text)
    if page == RECIPES:
        base = yaml.safe_load(blocks(page, "yaml")[0])
        return str(yaml.safe_dump(merged(base, given), sort_keys=False))
    rest: dict[str, Any] = yaml.safe_load(REST)
    return yaml.safe_dump({key: value for key, value in rest.items() if key not in given}) + text


def test_every_plans_file_that_is_shown_loads() -> None:
    for name in NAMES:
        for text in blocks(ROOT / name, "yaml"):
            loads(completed(text, ROOT / name), source=name)


def test_f_333_no_plans_file_that_is_shown_costs_by_surprise() -> None:
    """F-333: a recipe had `default_plan: pro`, so that everybody was on the paid plan."""
    found = [
        f"{name}: {note.path}: {note.message}"
        for name in NAMES
        for text in blocks(ROOT / name, "yaml")
        if text.startswith("schema: 1") or ROOT / name == RECIPES
        for note in loads(completed(text, ROOT / name), source=name).notes
        if note.kind in {"informs", "billed_from_first_unit"} and note.path not in NO_SURPRISE
    ]
    assert found == []


@pytest.mark.parametrize("name", ["README", "docs/quickstart", "docs/tutorial", "docs/tutorial-money"])
def test_meterkit_check_notes_nothing_of_a_first_plans_file(name: str) -> None:
    texts = [text for text in blocks(ROOT / f"{name}.md", "yaml") if text.startswith("schema: 1")]
    assert texts
    notes = [note for text in texts for note in loads(text, source=name).notes]
    assert [str(note) for note in notes if note.kind != "no_rate"] == []


@pytest.mark.dear("a page may start a kit in each of its blocks")
@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_all_python_of_a_page_runs_in_its_order(
    name: str, tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = tmp_path / "plans.yaml"
    first = [text for text in blocks(ROOT / name, "yaml") if text.startswith("schema: 1")][:1]
    plans.write_text("".join(first) or REST)
    (tmp_path / "app.py").write_text(blocks(ROOT / name, "python")[0])  # As the quickstart has it saved.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setitem(sys.modules, "app", ModuleType("app"))  # Removed at the end, as is what replaces it.
    del sys.modules["app"]
    monkeypatch.setenv("METERKIT_REDIS_URL", store_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    run(ROOT / name, plans)


def run(page: Path, plans: Path) -> None:
    """Run one text after the other in one event loop, those that await nothing without any.

    A later plans file of the page replaces the one before it.
    """
    names: dict[str, Any] = {"__name__": "shown"}
    with asyncio.Runner() as runner:
        for language, text in BLOCK.findall(page.read_text()):
            if language == "yaml" and text.startswith("schema: 1"):
                plans.write_text(text)
            if language != "python":
                continue
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code: CodeType = compile(text, page.name, "exec", flags=flags, dont_inherit=True)
            waited: Any = eval(code, names)  # noqa: S307 - It is our own documentation.
            if waited is not None:
                runner.run(waited)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_f_332_python_that_awaits_can_be_pasted_line_by_line(name: str) -> None:
    """F-332: up to Python 3.12 a blank line ends a block, and a block must end with one."""
    for text in blocks(ROOT / name, "python"):
        if re.search(r"^(?:with|async with|(?:\S.*)?\bawait) ", text, re.MULTILINE):
            assert find_unpasteable(text) == "", text


def find_unpasteable(text: str) -> str:
    """The line at which `python -m asyncio` would refuse a text that is pasted; empty: none."""
    compiled = codeop.CommandCompiler()
    compiled.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    begun = ""
    for line in [*text.splitlines(), ""]:
        begun += f"{line}\n"
        try:
            if compiled(begun.removesuffix("\n"), "pasted", "single") is not None:
                begun = ""
        except SyntaxError:
            return line
    return begun


def test_a_text_that_cannot_be_pasted_is_noticed() -> None:
    assert find_unpasteable("if x:\n    y()\n\n    z()\n") == "    z()"
    assert find_unpasteable("if x:\n    y()\nz()\n") == "z()"
    assert find_unpasteable("f(\n") == "f(\n\n"


def test_every_command_that_is_shown_exists() -> None:
    shown = [(name, words) for name in NAMES for words in COMMAND.findall((ROOT / name).read_text())]
    assert len(shown) > 100
    assert [] == [(name, words) for name, words in shown if not command_exists(words.split())]


def command_exists(words: list[str]) -> bool:
    command = COMMAND_LINE
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            if command.invoke_without_command:
                break  # What the group itself does.
            return False
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    return all(word.partition("=")[0] in known for word in words if word.startswith("--"))


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert command_exists(["flush", "--all"])
    assert not command_exists(["flush", "--everything"])
    assert not command_exists(["rename"])
    assert not command_exists(["customers", "rename"])


def test_every_page_that_is_linked_to_is_there() -> None:
    links = [(page, link) for page in PAGES for link in LINK.findall(page.read_text())]
    assert len(links) > 100
    assert [] == [(str(page), link) for page, link in links if not (page.parent / link).is_file()]


def test_a_promise_that_is_kept_has_tests_with_its_number() -> None:
    rows = re.findall(r"^\| I(\d+) \|.*\| ([^|]+) \|$", (ROOT / "docs/promises.md").read_text(), re.MULTILINE)
    assert [str(number) for number in range(1, 14)] == [number for number, _ in rows]
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    claimed = [number for number, said in rows if not said.startswith("later")]
    assert [] == [number for number in claimed if not re.search(rf"def test_i{number}_", tests)]


def test_every_public_setting_is_documented() -> None:
    told = (ROOT / "docs/settings.md").read_text()
    assert [] == [name for name in Settings.model_fields if f"`METERKIT_{name.upper()}`" not in told]


def test_the_readme_is_read_in_four_minutes() -> None:
    prose = COMMENT.sub("", FENCED.sub("", (ROOT / "README.md").read_text("utf-8")))
    assert len(prose.split()) <= WORDS_MAX


def test_the_guides_have_at_most_forty_thousand_words() -> None:
    """Outside code and tables."""
    docs = ROOT / "docs"
    pages = [
        page for page in docs.rglob("*.md") if not page.relative_to(docs).as_posix().startswith(NO_GUIDES)
    ]
    assert len(pages) > 30
    prose = (NO_PROSE.sub("", page.read_text("utf-8")) for page in pages)
    assert sum(len(WORD.findall(text)) for text in prose) <= GUIDES_WORDS_MAX


def test_the_readme_has_the_minimum_versions_of_the_project() -> None:
    tool = runpy.run_path(str(ROOT / "docs/tools/minimum_versions.py"))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert tool["with_table"](readme, tool["current_project"]()) == readme, (
        "run python docs/tools/minimum_versions.py"
    )
    with pytest.raises(ValueError, match=r"cannot read the requirement 'one~=1\.2'"):
        tool["table"]({"requires-python": ">=3.11", "dependencies": ["one~=1.2"]}, [])
    for broken, cure in (("pip install openai", "installs extras"), (readme[:900], "has no lines")):
        with pytest.raises(ValueError, match=cure):
            tool["with_table"](broken, tool["current_project"]())


@pytest.mark.parametrize("language", ["python", "yaml", "http"])
def test_the_first_page_of_the_site_shows_what_the_readme_shows(language: str) -> None:
    (shown,) = blocks(ROOT / "README.md", language)
    assert blocks(ROOT / "docs/index.md", language) == [shown]


def test_pictures_of_the_readme_are_there_in_both_themes() -> None:
    pictures = re.findall(r"(?:src|srcset)=\"([^\"]+)\"", (ROOT / "README.md").read_text("utf-8"))
    assert pictures == ["docs/assets/usage-summary-dark.png", "docs/assets/usage-summary-light.png"]
    heads = [(ROOT / path).read_bytes()[:24] for path in pictures]
    assert all(head.startswith(b"\x89PNG\r\n") for head in heads)
    assert len({head[16:] for head in heads}) == 1  # Width and height.


def test_f_334_every_picture_that_is_shown_is_in_the_repository() -> None:
    """F-334: on GitHub, pictures that only the build of the site makes were dead."""
    shown = [
        (page, link)
        for page in PAGES
        for link in PICTURE.findall(COMMENT.sub("", FENCED.sub("", page.read_text("utf-8"))))
    ]
    assert len(shown) > 10
    assert [(str(page), link) for page, link in shown if not (page.parent / link).is_file()] == []


def test_the_readme_ends_with_six_links() -> None:
    _, _, section = (ROOT / "README.md").read_text("utf-8").partition("\n## Documentation\n")
    assert len(LINK.findall(section)) == 6
