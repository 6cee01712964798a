"""Source is small and plain: modules and functions that are read at once, words of the field."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import pytest

import llm_usage
import meterkit
import stripe_emulator

ROOT: Final = Path(__file__).parents[1]
SOURCE: Final = ROOT / "src"
PACKAGES: Final = tuple(
    Path(str(package.__file__)).parent for package in (meterkit, llm_usage, stripe_emulator)
)
MODULES: Final = {package.name: sorted(package.rglob("*.py")) for package in PACKAGES}


def functions(package: str) -> Iterator[tuple[str, int]]:
    for path in MODULES[package]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(SOURCE)} {node.name}"
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1


def code_of(path: Path) -> int:
    """The lines of a script below its header."""
    lines = path.read_text(encoding="utf-8").split("\n")
    header = next(number for number, line in enumerate(lines) if not line.startswith(("--", "#!")))
    return sum(1 for line in lines[header:] if line.strip())


@pytest.mark.parametrize("package", MODULES)
def test_modules_are_short(package: str) -> None:
    paths = MODULES[package]
    lines = {str(path.relative_to(SOURCE)): len(path.read_text("utf-8").split("\n")) for path in paths}
    assert {name: count for name, count in lines.items() if count > 600} == {}
    assert 150 <= median(lines.values()) <= 300


@pytest.mark.dear("all modules are parsed")
@pytest.mark.parametrize("package", MODULES)
def test_functions_are_short(package: str) -> None:
    lines = dict(functions(package))
    assert {name: count for name, count in lines.items() if count > 70} == {}
    assert quantiles(lines.values(), n=20)[-1] <= 40


def test_scripts_are_short() -> None:
    scripts = Path(str(files("meterkit") / "lua"))
    commands = {path.name: code_of(path) for path in scripts.glob("*.lua")}
    includes = {path.name: code_of(path) for path in scripts.glob("include/*.lua")}
    assert commands
    assert includes
    assert {name: count for name, count in commands.items() if count > 120} == {}
    assert {name: count for name, count in includes.items() if count > 60} == {}


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    begins = re.compile(r'"""(What|How|Who|Whose|Where|When|Which|Have|See that|The same)\b')
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for paths in MODULES.values()
        for path in paths
        for line in path.read_text(encoding="utf-8").splitlines()
        if begins.search(line)
    ]
    assert found == []


def test_no_type_is_ignored() -> None:
    paths = [path for modules in MODULES.values() for path in modules]
    assert [str(path) for path in paths if "type: ignore" in path.read_text(encoding="utf-8")] == []


UNCLEAR: Final = {
    "an actor without a name": r"\b(nobody|whoever|whomever|somebody|someone's|nothing of it)\b",
    "a passive without an actor": (
        r"\b(is|are|was|were|be|been) (told|said|looked at|let go|seen to|asked for)\b"
    ),
    "an archaic link": r"\b(but for|of whom|of which|thereof|wherein|hereof)\b",
    "a thing named by a clause": (
        r"\b(is|are) what\b|^\s*(\"\"\"|#)?\s*What (is|was|has|had|comes|came|waits|goes)\b"
    ),
    "an empty adverb": r"\b(all the same|at all events|as ever|meanwhile that)\b",
    "money without its form": r"\b\d+ (usd|eur|jpy|gbp) cents\b",
}
PRIVATE: Final = r"\b(teller|nights|steering|steer|Holder|Marked|repeats\.py|hourly\.py)\b"
"""Words that only the authors would know, and the word of the field: event dispatcher, nightly sync,
operator commands, owner of a hold, idempotency, throttled log."""


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that a person reads, with their numbers."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1))
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in kinds:
                lines = token.string.splitlines()
                yield from ((token.start[0] + nth, line) for nth, line in enumerate(lines))
        return
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and (path.suffix == ".md" or line.lstrip().startswith("--")):
            yield number, line


def pages() -> list[Path]:
    own = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
    return [*own, *sorted(SOURCE.rglob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def unclear(paths: list[Path], rules: dict[str, str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {rule}: {line.strip()}"
        for path in paths
        for number, line in prose(path)
        for rule, pattern in rules.items()
        if re.search(pattern, line, re.IGNORECASE)
    ]


@pytest.mark.dear("all source is tokenized")
@pytest.mark.parametrize("suffix", ["py", "lua"])
def test_source_and_messages_are_plain(suffix: str) -> None:
    assert unclear(sorted((ROOT / "src").rglob(f"*.{suffix}")), UNCLEAR) == []


def test_pages_are_plain() -> None:
    assert unclear(pages(), UNCLEAR) == []


def test_no_private_word_is_left() -> None:
    everything = [path for path in sorted((ROOT / "src").rglob("*")) if path.suffix in {".py", ".lua"}]
    for path in [*everything, *pages()]:
        assert re.search(PRIVATE, path.read_text("utf-8")) is None, path
