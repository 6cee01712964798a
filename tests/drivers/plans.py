"""Plans files of the tests: ``tests/plans/NAME.yaml``, and ones with the routes that a test names."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Final

from meterkit.catalog import Catalog, loads
from meterkit.catalog.errors import Problems
from meterkit.catalog.yaml_reader import parse
from meterkit.catalog.yaml_tree import Fields, Items, Node

_DEFAULTS: Final = {
    "schema": "1",
    "currency": "usd",
    "default_plan": "free",
    "plans": "{free: {price: {amount_cents: 0, interval: month}}}",
}
_FOLDER: Final = Path(__file__).parents[1] / "plans"


@cache
def plans_text(name: str) -> str:
    """The text of a plans file; a test may replace parts of it."""
    return (_FOLDER / f"{name}.yaml").read_text("utf-8")


def free_plan(meters: str, limits: str = "{}", top: str = "") -> str:
    """A plans file with one plan, free of charge: meters, the plan's limits, other keys of the top level."""
    return f"""
schema: 1
currency: usd
default_plan: free
meters: {meters}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {limits}
{top}
"""


def completed(text: str) -> str:
    """A plans file with the keys that a text leaves out: its head, and one plan, which costs nothing."""
    text = dedent(text)
    given = {line.partition(":")[0] for line in text.splitlines()}
    return text + "".join(f"\n{key}: {value}" for key, value in _DEFAULTS.items() if key not in given)


def routed(*lines: str) -> Catalog:
    written = "".join(f'  - {{match: "{line}"}}\n' for line in lines)
    return loads(completed(f"meters: {{requests: {{unit: request}}}}\nroutes:\n{written}"))


def json_of(text: str | bytes) -> object:
    """A plans file as editors see it."""
    data = text.encode() if isinstance(text, str) else text
    return to_json(parse(data, problems=Problems("plans.yaml")))


def to_json(node: Node) -> object:
    """A node as editors see it: YAML 1.2, core schema."""
    if isinstance(node, Items):
        return [to_json(item) for item in node.items]
    if isinstance(node, Fields):
        return {key: to_json(value) for key, value in node.values.items()}
    if node.is_null:
        return None
    is_literal = re.fullmatch(r"true|false|-?[0-9]+([.][0-9]+)?", node.text) and not node.quoted
    return json.loads(re.sub(r"^0+(?=[0-9])", "", node.text)) if is_literal else node.text
