"""``extends``: a plan's map laid over the map of the plan it extends, before either is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from meterkit.catalog.document import Fields, Node, Text
from meterkit.catalog.errors import unknown

if TYPE_CHECKING:
    from meterkit.catalog.errors import Problems

EXTENDS: Final = "extends"
# A plan's name and what it extends are its own; all else is inherited.
_OWN: Final = frozenset({EXTENDS, "name"})


def with_inheritance(root: Fields, problems: Problems) -> Fields:
    """The document with every plan's inherited entries written out, each keeping its own place."""
    plans = root.values.get("plans")
    if not isinstance(plans, Fields):
        return root
    parents = {key: parent for key, node in plans.values.items() if (parent := _parent(node)) is not None}
    merged: dict[str, Node] = {}
    for key in plans.values:
        _resolve(key, plans, parents, merged, problems)
    ordered = {key: merged[key] for key in plans.values}
    return replace(root, values={**root.values, "plans": replace(plans, values=ordered)})


def _parent(node: Node) -> Text | None:
    extends = node.values.get(EXTENDS) if isinstance(node, Fields) else None
    return extends if isinstance(extends, Text) and not extends.is_null else None


def _resolve(
    key: str, plans: Fields, parents: dict[str, Text], merged: dict[str, Node], problems: Problems
) -> None:
    """Fill ``merged`` for one plan and for all it extends, furthest first."""
    line: list[str] = []
    step: str | None = key
    while step is not None and step not in merged:
        if step in line:
            around = " → ".join([*line[line.index(step) :], step])
            message = f"plans extend each other in a circle: {around}; one of them must not"
            problems.refuse(parents[step].place, message)
            break
        line.append(step)
        parent = parents.get(step)
        if parent is not None and parent.text not in plans.values:
            problems.refuse(parent.place, unknown("plan", parent.text, plans.values))
            parent = None
        step = parent.text if parent else None
    for name in reversed(line):
        own = plans.values[name]
        parent = parents.get(name)
        base = merged.get(parent.text) if parent else None
        merged[name] = own if base is None else _overlay(base, own, without=_OWN)


def _overlay(base: Node, own: Node, *, without: frozenset[str] = frozenset()) -> Node:
    if not isinstance(base, Fields) or not isinstance(own, Fields):
        return own
    values = {key: value for key, value in base.values.items() if key not in without}
    inherited = {key: base.places[key] for key in values}
    for key, value in own.values.items():
        values[key] = _overlay(values[key], value) if key in values else value
    return Fields(own.place, values, {**inherited, **own.places})
