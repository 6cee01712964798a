"""A customer's terms over time: rows that are only appended, each with the facts that it changes. Pure.

A row says since when something holds, when that became known, and who said so. The layers of facts never
overwrite each other: what was sold (:data:`SUBSCRIPTION`, :data:`PLAN`, :data:`ADDONS`, :data:`PRICES`), how
its usage is billed (:data:`FREE`, :data:`LINES`), which periods were cut short (:data:`CUT`), what was set by
hand (:data:`PLAN_BY_HAND`, :data:`STATUS_BY_HAND`). The state has overrides, with their ends.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Source = Literal["stripe", "operator", "app", "plans_file", "clock"]

SUBSCRIPTION: Final = "sold.id"
"""Id of the subscription that is in force; None: there is none."""
PLAN: Final = "sold.plan"
"""Key of the plan that it sells; without one, the default plan's."""
ADDONS: Final = "sold.addons"
"""The add-ons that it sells, with their quantities."""
LINK: Final = "sold.link"
"""The Stripe customer since another link; empty: none; None: there was no other one."""
LATE_PERIOD: Final = "sold.late"
"""First instant of a first period that begins amid two billing anchors; the length (ms) of a whole one."""
PRICES: Final = "sold.prices"
"""Prices of its items, or those at which invoice lines bill its usage."""
PAUSED_PLAN: Final = "sold.paused"
"""Key of the plan that is left while its trial is paused; None: it is not."""
PLAN_BY_HAND: Final = "hand.plan"
"""Key of the plan that was set by hand; None: what was sold counts."""
PRICES_BY_HAND: Final = "hand.prices"
"""Prices of usage on that plan, where invoice lines bill it."""
STATUS_BY_HAND: Final = "hand.status"
"""Status that was set by hand; None: what was sold counts."""
FREE: Final = "usage.free"
"""``trial`` or ``pause``: no invoice bills the usage; None: one may. The subscription shows its own ones."""
LINES: Final = "usage.lines"
"""Whether invoice lines, not metered prices, bill the usage."""
USED: Final = "sold.used"
"""Units included by then, by meter, of meters that only the next plan limits. Of this instant alone."""
CUT: Final = "cycle.cut"
"""The latest period that was cut short; see :class:`~meterkit.terms.cuts.Cut`."""
SPENT: Final = "cycle.spent"
"""The latest month in which a subscription has begun, and what was used in it without one; likewise."""

EVER_MS: Final = -9_000_000_000_000_000
"""Stands for a beginning that is not known."""
AT_ONCE_MS: Final = 60_000
"""Stripe's periods begin at whole seconds, and a change that begins one is heard of a little later."""
UNKNOWN_PLAN: Final = "?"
"""Plan of a time that gives nothing."""

NOTHING: Final[Mapping[str, Any]] = {
    SUBSCRIPTION: None,
    PLAN: None,
    ADDONS: (),
    PRICES: (),
    LINK: None,
    LATE_PERIOD: (),
    PAUSED_PLAN: None,
    PLAN_BY_HAND: None,
    PRICES_BY_HAND: (),
    STATUS_BY_HAND: None,
    FREE: None,
    LINES: False,
    USED: (),
    CUT: (),
    SPENT: (),
}
"""The facts before the first row."""


class Row(NamedTuple):
    """A change of some facts.

    Attributes:
        since_ms: from when on they hold.
        told_ms: when that became known.
        source: who said so.
        facts: those that changed, by name.
    """

    since_ms: int
    told_ms: int
    source: Source
    facts: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, kept: Sequence[Any]) -> Row:
        """Read a row as a state stores it; ignores what a newer release adds. Raises ValueError: damaged."""
        since_ms, told_ms, source, facts, *_ = kept
        known = tuple((name, _freeze(value)) for name, value in facts if name in NOTHING)
        if not (type(since_ms) is type(told_ms) is int and all(_is_sound(*fact) for fact in known)):
            raise ValueError(f"no row of terms: {kept!r:.200}")
        return cls(since_ms, told_ms, source, known)


Terms: TypeAlias = "tuple[Row, ...]"
"""The rows of a customer in the order in which they became known."""


def _is_sound(name: str, value: object) -> bool:
    """Whether a value is of the kind of its fact: a tuple, a text, or whether something holds."""
    nothing = NOTHING[name]
    return type(value) is type(nothing) or (nothing is None and type(value) is str)


def _freeze(value: object) -> object:
    return tuple(map(_freeze, cast("list[object]", value))) if isinstance(value, list) else value


def in_order(terms: Iterable[Row]) -> list[Row]:
    """The rows by the instant since which they hold; of several, the one told last is the last."""
    return sorted(terms, key=lambda row: (row.since_ms, row.told_ms))


def in_force(terms: Iterable[Row], at_ms: int, known_ms: int | None = None) -> dict[str, Any]:
    """The facts that hold at an instant.

    Args:
        terms: of a customer.
        at_ms: the instant.
        known_ms: rows that became known later do not count; None: all count.
    """
    found = dict(NOTHING)
    for row in in_order(terms):
        if row.since_ms <= at_ms and (known_ms is None or row.told_ms <= known_ms):
            found |= {USED: (), **dict(row.facts)}
    return found


class FactSpan(NamedTuple):
    """A time in which a fact has one value: first instant, the first one after it, and the value."""

    from_ms: int
    till_ms: int
    value: Any


def fact_spans(terms: Iterable[Row], name: str) -> list[FactSpan]:
    """The times in which a fact has one value, the oldest first."""
    facts = ((row.since_ms, *fact) for row in in_order(terms) for fact in row.facts)
    values = {EVER_MS: NOTHING[name], **{since_ms: value for since_ms, of, value in facts if of == name}}
    return [FactSpan(from_ms, till_ms, values[from_ms]) for from_ms, till_ms in pairwise((*values, -EVER_MS))]


def ended_values(terms: Iterable[Row], name: str) -> list[tuple[int, Any]]:
    """Values that a fact had until now, the oldest first, each with the first instant after it (ms)."""
    return [(span.till_ms, span.value) for span in fact_spans(terms, name)[:-1] if span.value]


def rename(terms: Terms, was: tuple[str, Any], now: tuple[str, Any]) -> Terms:
    """Replace a fact in all rows by the same under another name: nothing changes with it."""
    return tuple(
        row._replace(facts=tuple(now if fact == was else fact for fact in row.facts)) for row in terms
    )


def tell(terms: Terms, facts: Mapping[str, Any], since_ms: int, told_ms: int, source: Source) -> Terms:
    """Append a row for each layer of facts in which something changes.

    A row never precedes an earlier one of its layer.
    """
    for layer, of_layer in groupby(sorted(facts.items()), key=lambda fact: layer_of(fact[0])):
        from_ms = max(since_ms, last_ms(terms, layer))
        known = in_force(terms, from_ms)
        changed = tuple(fact for fact in of_layer if fact[1] != known[fact[0]])
        if changed:
            terms = (*terms, Row(from_ms, told_ms, source, changed))
    return terms


def append_usage_fact(terms: Terms, name: str, value: object, since_ms: int, told_ms: int) -> Terms:
    """Append a row of how usage is billed, also amid earlier rows, unless it is billed so then."""
    if in_force(terms, since_ms)[name] == value:
        return terms
    return (*terms, Row(since_ms, told_ms, "stripe", ((name, value),)))


def layer_of(name: str) -> str:
    """The layer of a fact: the word before the point."""
    return name.partition(".")[0]


SOLD: Final = layer_of(PLAN)
BY_HAND: Final = layer_of(PLAN_BY_HAND)


def is_of_layer(row: Row, layer: str) -> bool:
    """Whether a row changes a fact of a layer."""
    return any(layer_of(name) == layer for name, _ in row.facts)


def last_row(terms: Iterable[Row], layer: str) -> Row | None:
    """The latest row of a layer; None: there is none."""
    of_layer = (row for row in terms if is_of_layer(row, layer))
    return max(of_layer, key=lambda row: (row.since_ms, row.told_ms), default=None)


def last_ms(terms: Iterable[Row], layer: str) -> int:
    """Since when the latest row of a layer holds; :data:`EVER_MS`: there is none."""
    row = last_row(terms, layer)
    return EVER_MS if row is None else row.since_ms
