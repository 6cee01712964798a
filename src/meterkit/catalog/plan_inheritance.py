"""Inheritance of plans by ``extends``: maps merge by key; lists and scalars replace those of the parent."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from meterkit.catalog.errors import Problems, unknown
from meterkit.catalog.yaml_tree import Fields, Node, Text

EXTENDS: Final = "extends"
# A plan's name and what it extends are its own; all else is inherited.
_OWN: Final = frozenset({EXTENDS, "name"})


def with_inheritance(root: Fields, problems: Problems) -> Fields:
    """The document with every plan's inherited entries written out, each keeping its own place."""
    plans = root.values.get("plans")
    if not isinstance(plans, Fields):
        return root
    parents = {key: parent for key, node in plans.values.items() if (parent := _parent_of(node)) is not None}
    merged: dict[str, Node] = {}
    for key in plans.values:
        _merge_ancestors(key, plans, parents, merged, problems)
    ordered = {key: merged[key] for key in plans.values}
    return replace(root, values={**root.values, "plans": replace(plans, values=ordered)})


def _parent_of(node: Node) -> Text | None:
    extends = node.values.get(EXTENDS) if isinstance(node, Fields) else None
    return extends if isinstance(extends, Text) and not extends.is_null else None


def _merge_ancestors(
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
        merged[name] = own if base is None else _merge_nodes(base, own, without=_OWN)


def _merge_nodes(base: Node, own: Node, *, without: frozenset[str] = frozenset()) -> Node:
    if not isinstance(base, Fields) or not isinstance(own, Fields):
        return own
    values = {key: value for key, value in base.values.items() if key not in without}
    inherited = {key: base.places[key] for key in values}
    for key, value in own.values.items():
        values[key] = _merge_nodes(values[key], value) if key in values else value
    return Fields(own.place, values, {**inherited, **own.places})
