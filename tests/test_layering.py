"""Imports point backwards along one line, without cycles; `llm_usage` and the Stripe emulator stand alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import llm_usage
import meterkit
import stripe_emulator

LINE = (
    ("llm_usage",),  # A package of its own, which imports nothing of meterkit.
    ("errors", "log_throttle", "problem_types", "cancellation", "safe_text", "csv_text", "metric_tallies"),
    ("settings", "allowed_origins", "http_bodies"),
    ("catalog",),
    ("terms",),
    ("decisions",),
    ("redis",),
    ("store",),
    ("outbox",),
    ("customers",),
    ("stripe",),
    ("asgi", "delivery", "subscriptions", "storage", "notify", "insights"),
    ("starlette",),
    ("fastapi", "llm", "pages"),
    ("serving", "assembly"),
    ("health",),
    ("sync",),
    ("kit", ""),  # The package itself hands out the names of the kit and of all before it.
    ("stripe_emulator",),  # A package of its own, before those that may import it.
    ("testing",),
    ("cli",),
    ("__main__",),
)
PACKAGES = (llm_usage, meterkit, stripe_emulator)
_OURS = r"(?:llm_usage|meterkit|stripe_emulator)[\w.]*"
# Import statements as the formatter writes them: to parse all modules takes seconds.
SEVERAL = re.compile(rf"^ *from ({_OURS}) import (?:\(([^)]*)\)|([^(\n]*))", re.MULTILINE)
ONE = re.compile(rf"^ *import ({_OURS})|\bimport_module\([\"']({_OURS})", re.MULTILINE)
PLACE = {room: place for place, rooms in enumerate(LINE) for room in rooms}


@cache
def sources() -> dict[str, str]:
    """Module to source, for all packages."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            parts = (package.__name__, *path.relative_to(root).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def test_the_map_of_contributing_names_the_rooms_in_their_order() -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    table = text[text.index("| room |") : text.index("`lua/` has")]
    named = re.findall(r"`([a-z_]+)(?:/|\.py)`", "\n".join(re.findall(r"^\| (.+?) \|", table, re.MULTILINE)))
    places = [PLACE[room] for room in named]
    assert places == sorted(places)
    assert set(named) == set(PLACE) - {"", "__main__"}


def test_the_design_page_has_the_import_line() -> None:
    page = (Path(__file__).parents[1] / "docs/design/index.md").read_text("utf-8")
    (line,) = (block for block in page.split("\n\n") if "→" in block)
    named = tuple(tuple(re.findall(r"`(\w+)`", place)) for place in line.split("→"))
    shown = tuple(tuple(room for room in rooms if room not in {"", "__main__"}) for rooms in LINE)
    assert named == tuple(rooms for rooms in shown if rooms)


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "meterkit" else package


def imports(module: str, known: Mapping[str, str]) -> Iterator[tuple[int, str]]:
    """The lines and modules of ours that a module imports, whether to run or only to check types."""
    source = known[module]
    found = [(one.start(), one[1] or one[2]) for one in ONE.finditer(source)]
    for several in SEVERAL.finditer(source):
        origin, names = several[1], re.sub(r"#.*", "", several[2] or several[3])
        inside = [f"{origin}.{name.split()[0]}" for name in names.split(",") if name.strip()]
        found += [(several.start(), name if name in known else origin) for name in inside]
    yield from ((source.count("\n", 0, start) + 1, name) for start, name in found if name in known)


def violations(known: Mapping[str, str]) -> list[str]:
    """Every import that points forwards, sideways between rooms, or into a circle."""
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module in known:
        here = room_of(module)
        graph[module] = set()
        if here not in PLACE:
            found.append(f"{module}: {here} has no place in the line")
            continue
        for line, target in imports(module, known):
            there = room_of(target)
            if module != "meterkit":  # It imports a name when that is first used.
                graph[module].add(target)
                is_ahead = PLACE.get(there, len(LINE)) >= PLACE[here]
                if there != here and (is_ahead or here == "stripe_emulator"):
                    found.append(f"{module}:{line} imports {target}")
    return found + [f"a circle through {module}" for module in sorted(circles(graph))]


def circles(graph: Mapping[str, set[str]]) -> set[str]:
    """The modules from which imports lead back to themselves."""
    # A module that imports none of those that are left is in no circle: most of them go by that.
    left = {module: set(targets) & graph.keys() for module, targets in graph.items()}
    while done := {module for module, targets in left.items() if not targets}:
        left = {module: targets - done for module, targets in left.items() if module not in done}
    found: set[str] = set()
    for start in left:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph[module]
        if start in seen:
            found.add(start)
    return found


def test_imports_point_backwards_and_there_are_no_circles() -> None:
    known = sources()
    assert len(known) > 50
    assert [] == violations(known)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (
            {"decisions.keys": "from meterkit.asgi import limit_fields"},
            ["decisions.keys:1 imports meterkit.asgi.limit_fields"],
        ),
        (
            {"catalog.load": "if TYPE_CHECKING:\n    from meterkit.kit import A"},
            ["catalog.load:2 imports meterkit.kit"],
        ),
        (
            {"decisions.keys": "def late():\n    import_module('meterkit.cli')"},
            ["decisions.keys:2 imports meterkit.cli"],
        ),
        (
            {"redis.a": "from meterkit.redis import b", "redis.b": "from meterkit.redis.a import A"},
            ["a circle through meterkit.redis.a", "a circle through meterkit.redis.b"],
        ),
        ({"helpers": ""}, ["helpers: helpers has no place in the line"]),
        ({"cli": "from meterkit import MeterKit\nfrom stripe_emulator import Clock"}, []),
        ({"testing": "import stripe_emulator"}, []),
        ({"kit": "import stripe_emulator"}, ["kit:1 imports stripe_emulator"]),
        ({"catalog.load": "from llm_usage import units"}, []),
        ({"llm_usage": "from meterkit import errors"}, ["llm_usage:1 imports meterkit.errors"]),
        ({"stripe_emulator": "from meterkit import errors"}, ["stripe_emulator:1 imports meterkit.errors"]),
    ],
)
def test_a_planted_violation_is_found(planted: dict[str, str], found: list[str]) -> None:
    names = (
        *("meterkit", "meterkit.errors", "meterkit.catalog", "meterkit.catalog.load", "meterkit.store"),
        *("meterkit.decisions.keys", "meterkit.asgi", "meterkit.asgi.limit_fields", "meterkit.delivery"),
        *("meterkit.delivery.seal", "meterkit.kit", "meterkit.testing", "meterkit.cli"),
    )
    alone = {"llm_usage", "stripe_emulator"}
    names_of = {name: name if name in alone else f"meterkit.{name}" for name in planted}
    texts = {names_of[name]: text for name, text in planted.items()}
    wrong = violations(dict.fromkeys((*names, *alone), "") | texts)
    assert [text.removeprefix("meterkit.") for text in wrong] == found


def test_the_map_of_scripts_names_each_of_them_and_its_callers() -> None:
    package = Path(meterkit.__file__).parent
    scripts = {path.stem for path in (package / "lua").glob("*.lua")}
    table = (package / "lua" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| .+? \| (`.+?`) \| (.+?) \|$", table, re.MULTILINE)
    named = {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert scripts <= named
    assert named <= scripts | {path.stem for path in (package / "lua" / "include").glob("*.lua")}
    for names, files in rows:
        for file in re.findall(r"`([\w/.]+)`", files):
            text = ((package.parents[1] if file.startswith("tests/") else package) / file).read_text("utf-8")
            assert f'"{names.strip("`")}"' in text or names.strip("`") not in scripts, (names, file)


def test_replies_of_scripts_have_the_same_numbers_in_python() -> None:
    package = Path(meterkit.__file__).parent
    constants = (package / "lua" / "shared" / "constants.lua").read_text("utf-8")
    replies = (package / "store" / "replies.py").read_text("utf-8")
    in_python = re.findall(r"^_?([A-Z_]+): Final = (\d+)$", replies, re.MULTILINE)
    assert {*in_python} <= {*re.findall(r"^local ([A-Z_]+) = (\d+)", constants, re.MULTILINE)}
    assert ("SYNC_NO_ROOM", "2") in in_python
