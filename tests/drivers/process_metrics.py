"""What a process tells of itself to those who ask for its metrics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.applications import Starlette
from starlette.routing import Mount

from meterkit import MeterKit, metrics_app


async def told(kit: MeterKit) -> dict[str, float]:
    """Each metric by its name, with the value of its only label."""
    app = Starlette(routes=[Mount("/metrics", metrics_app(kit))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        text = (await client.get("/metrics/")).text
    return {
        " ".join((sample.name.removeprefix("meterkit_"), *sample.labels.values())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def said_by(program: str, directory: Path, *, plans: str) -> str:
    """What a program prints that runs in a directory with a plans file."""
    (directory / "plans.yaml").write_text(plans)
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<span>\[\d+[smhdw](?::\d*[smhdw]?)?\])
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<operator>=~|!~|!=|==|>=|<=|[-+*/%^<>=])
    | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<mark>[(){},])
    )""",
    re.VERBOSE,
)
_FUNCTIONS: Final = frozenset({"absent", "histogram_quantile", "increase", "max_over_time", "rate"})
_AGGREGATIONS: Final = frozenset({"count", "max", "min", "sum"})
_WORDS: Final = frozenset({"and", "by", "or", "unless", "without"})
_CLOSING: Final = {")": "(", "}": "{"}
_OF_RANGES: Final = frozenset({"increase", "max_over_time", "rate"})


def tokens_of(expression: str) -> list[tuple[str, str]]:
    """Kinds and texts. Raises ValueError where something is no token."""
    found: list[tuple[str, str]] = []
    at = 0
    while expression[at:].strip():
        token = _TOKEN.match(expression, at)
        if token is None:
            raise ValueError(f"not readable from here: {expression[at:]}")
        found.append((str(token.lastgroup), token[0].strip()))
        at = token.end()
    return found


def names_in(expression: str) -> set[str]:
    return {text for kind, text in tokens_of(expression) if kind == "name" and text.startswith("meterkit_")}


def problems_in(expression: str) -> list[str]:
    """What is wrong with it; nothing: it is one."""
    try:
        tokens = tokens_of(expression)
    except ValueError as error:
        return [str(error)]
    found: list[str] = []
    opened: list[str] = []
    before = ""
    for place, (kind, text) in enumerate(tokens):
        after = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        if text in {"(", "{"}:
            opened.append(text)
        elif text in _CLOSING and (not opened or opened.pop() != _CLOSING[text]):
            found.append(f"{text} closes nothing")
        elif kind == "name" and after == "(" and text not in _FUNCTIONS | _AGGREGATIONS | _WORDS:
            found.append(f"{text} is no function that is known here")
        elif kind == "name" and text in _FUNCTIONS | _AGGREGATIONS and after not in {"(", "by", "without"}:
            found.append(f"{text} is asked of nothing")
        elif kind == "operator" and (not before or not after) and text != "-":
            found.append(f"{text} has nothing to compare")
        elif kind == "span" and before != "}" and not before.startswith("meterkit_"):
            found.append(f"{text} is no span of a metric")
        before = text
    spans = sum(kind == "span" for kind, _ in tokens)
    if spans != sum(text in _OF_RANGES for _, text in tokens):
        found.append("a span for each function that takes one, and for no other")
    return found + [f"{text} is not closed" for text in opened]
