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
            _refuse_cycle(line[line.index(step) :], parents, problems)
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
        merged[name] = own if base is None else _overlay(_inheritable(base), own)


def _refuse_cycle(cycle: list[str], parents: dict[str, Text], problems: Problems) -> None:
    around = " → ".join([*cycle, cycle[0]])
    problems.refuse(
        parents[cycle[0]].place, f"plans extend each other in a circle: {around}; one of them must not"
    )


def _inheritable(node: Node) -> Node:
    if not isinstance(node, Fields):
        return node
    return replace(node, values={key: value for key, value in node.values.items() if key not in _OWN})


def _overlay(base: Node, own: Node) -> Node:
    if not isinstance(base, Fields) or not isinstance(own, Fields):
        return own
    values = dict(base.values)
    for key, value in own.values.items():
        values[key] = _overlay(values[key], value) if key in values else value
    inherited = {key: place for key, place in base.places.items() if key in base.values}
    return Fields(own.place, values, {**inherited, **own.places})
