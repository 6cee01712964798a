"""F-136: pages state names and defaults as the code has them, so that no two contradict each other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import typer

from meterkit import MeterKit, MeterMiddleware
from meterkit.catalog import loads
from meterkit.cli.app import app
from meterkit.settings import Settings
from meterkit.sync import SyncMeterKit

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")} | {
    "README.md": (ROOT / "README.md").read_text("utf-8")
}
SOURCE: Final = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
WORDS: Final = {"five minutes": 300.0, "a quarter of a second": 0.25}
PLANS: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""


def found(pattern: str) -> Iterator[tuple[str, Any]]:
    """Each match on any page, with the page."""
    for name, text in PAGES.items():
        for match in re.findall(pattern, text):
            yield name, match


def default_of(variable: str) -> object:
    field = Settings.model_fields[variable.removeprefix("METERKIT_").lower()]
    return None if field.default_factory is not None else field.default


def test_every_setting_that_a_page_names_is_one() -> None:
    known = {f"METERKIT_{name.upper()}" for name in Settings.model_fields}
    assert {name for _, name in found(r"METERKIT_[A-Z_]+[A-Z]")} <= known


def test_defaults_of_settings_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(METERKIT_\w+)` \| `([^`]+)` \|", PAGES["settings.md"], re.MULTILINE))
    assert len(rows) > 7
    for variable, told in rows.items():
        default = default_of(variable)
        said = {"METERKIT_PLANS": None, False: "off"}.get(variable, told)
        expected = "off" if default is False else f"{default:g}" if isinstance(default, float) else default
        assert said == (expected if expected is None else str(expected)), variable


def test_defaults_beside_a_setting_in_running_text_are_those_of_the_code() -> None:
    seen = 0
    for page, (variable, told) in found(r"`(METERKIT_\w+)` \(([^)]+)\)"):
        words = told.strip("`")
        value = WORDS.get(words)
        if value is None:
            number = re.fullmatch(r"([\d.]+)(?: s| seconds)?", words)
            value = float(number[1]) if number else words
        default = default_of(variable)
        assert value == (float(default) if isinstance(default, int | float) else default), (page, variable)
        seen += 1
    assert seen > 5


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, part in getattr(group, "commands", {}).items():
        yield from commands(part, (*path, name))


def test_every_command_that_a_page_names_is_one() -> None:
    known = set(commands(typer.main.get_command(app)))
    groups = {path for path in known if any(other[:-1] == path for other in known if other)}
    wrong = {
        (page, named)
        for page, named in found(r"(?:`|^\$ )meterkit ([a-z]+(?: [a-z][a-z-]*)?)")
        if (words := tuple(named.split()))[:1] not in known or (words[:1] in groups and words not in known)
    }
    assert wrong == set()


def test_every_problem_and_event_that_a_page_names_is_one() -> None:
    types = {name for _, name in found(r"urn:meterkit:problem:([a-z-]+)")}
    assert len(types) > 5
    assert {name for name in types if name not in SOURCE} == set()
    events = {name for _, name in found(r'kit\.on\("([a-z.]+)"\)')}
    assert {name for name in events if f'"{name}"' not in SOURCE} == set()


@pytest.mark.parametrize("block", ["dunning", "billing"])
def test_blocks_that_show_defaults_show_those_of_the_code(block: str) -> None:
    shown = {
        text
        for _, text in found(rf"(?m)^{block}: \{{.*\}}$")
        if "remind" in text or re.fullmatch(r"billing: \{(hold_invoice|late_usage): \w+\}", text)
    }
    assert shown
    default = loads(PLANS)
    for text in shown:
        read = loads(PLANS + text.replace("restrict_to: free", "restrict_to: default_plan"))
        assert getattr(read, block) == getattr(default, block), text


@pytest.mark.parametrize("kind", [MeterKit, MeterMiddleware])
def test_every_argument_has_its_line(kind: type) -> None:
    section = re.split(r"^## ", PAGES["python.md"], flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{kind.__name__}\n"))
    arguments = set(inspect.signature(kind).parameters) - {"app", "settings", "self"}
    assert {name for name in arguments if f"| `{name}` |" not in text} == set()


def test_what_code_without_a_loop_has_is_listed() -> None:
    text = PAGES["workers.md"].split("It has `")[1].split("each as")[0]
    listed = {"check", *re.findall(r"`(\w+)`", text)}
    with MeterKit(loads(PLANS), redis_url="memory://", flush=False).sync() as kit:
        has = {name for name in dir(kit) if not name.startswith("_")}
    assert listed == has - {"start", "stop"}
    assert SyncMeterKit.__name__ in PAGES["workers.md"]
