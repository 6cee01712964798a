"""What an allowed decision holds until it is settled: quantities, recorded usage, an audit entry.

Pure.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self, TypeVar

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.event_marks import UNCOMPARED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from fractions import Fraction

    from meterkit.decisions.subjects import SubjectHold
    from meterkit.redis.scripts import Script
    from meterkit.store.views import CustomerView, PreparedDecision

_Quantity = TypeVar("_Quantity")

_NOTHING: Final[dict[str, int]] = {}
_NO_SUBJECTS: Final[dict[str, SubjectHold]] = {}
_NO_DIMENSIONS: Final[dict[str, str]] = {}
_NOTHING_CHARGED: Final[dict[str, Fraction]] = {}
_NOTHING_COST: Final[dict[str, Fraction | int]] = {}


class Used(NamedTuple):
    """Quantities that are counted together.

    Attributes:
        recorded: meter to the quantity that is recorded.
        rated: meter to the quantity that its rates count in all.
        dimensions: the model and the provider, for meters that are derived from others (``where:``).
        measured: meter to the quantity that the dimensions are of; None: what is rated.
        charged: meter to the amount that it is charged, exactly; whole units are recorded with the rest.
        costs: meter to what providers charge for it, in micro-units of US dollars: exact, then whole ones.
        version: of the prices that the costs are by.
        units: counters of model calls by the price table's unit, for the audit log.
        unpriced: model without a price to the calls of it; empty: its name is not known.
    """

    recorded: Mapping[str, int] = _NOTHING
    rated: Mapping[str, int] = _NOTHING
    dimensions: Mapping[str, str] = _NO_DIMENSIONS
    measured: Mapping[str, int] | None = None
    charged: Mapping[str, Fraction] = _NOTHING_CHARGED
    costs: Mapping[str, Fraction | int] = _NOTHING_COST
    version: str = ""
    units: Mapping[str, int] = _NOTHING
    unpriced: Mapping[str, int] = _NOTHING

    @classmethod
    def of(cls, quantities: Mapping[str, int], **dimensions: str) -> Self:
        """The dimensions that recording and rates go by."""
        return cls(quantities, quantities, dimensions)

    def given(self) -> dict[str, int]:
        """Quantities by meter, as the mark of an event id keeps them."""
        return {**self.rated, **self.recorded, **dict.fromkeys(self.charged, UNCOMPARED)}

    def only(self, meters: Collection[str]) -> Self:
        """The part of it that is of these meters."""

        def of_these(quantities: Mapping[str, _Quantity]) -> dict[str, _Quantity]:
            return {meter: quantity for meter, quantity in quantities.items() if meter in meters}

        return self._replace(
            recorded=of_these(self.recorded),
            rated=of_these(self.rated),
            measured=None if self.measured is None else of_these(self.measured),
            costs=of_these(self.costs),
            unpriced=_NOTHING,
            units=_NOTHING,  # The rows of the other meters have them.
        )


NOTHING_USED: Final = Used()


def meters_of(parts: Iterable[Used]) -> set[str]:
    """The meters that were used or charged; a quantity of 0 is no use."""
    used = [name for part in parts for name, quantity in part.rated.items() if quantity]
    return {*used, *(name for part in parts for name, amount in part.charged.items() if amount > 0)}


def add(quantities: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sums of quantities by meter; at most 10^15 - 1 each."""
    total = dict(quantities)
    for meter, quantity in more.items():
        total[meter] = min(total.get(meter, 0) + quantity, QUANTITY_MAX)
    return total


class Held(NamedTuple):
    """What an allowed decision holds.

    Attributes:
        quantities: by meter.
        concurrency: meters of whose concurrency it holds one.
        slot: of five minutes, that it was added to.
        costs: what a unit is held at of the meters whose cost depends on the model (micro-credits).
        subjects: what it holds of the customer's subjects, by kind.
    """

    quantities: Mapping[str, int] = _NOTHING
    concurrency: tuple[str, ...] = ()
    slot: int = 0
    costs: Mapping[str, int] = _NOTHING
    subjects: Mapping[str, SubjectHold] = _NO_SUBJECTS

    @classmethod
    def of(cls, decision: PreparedDecision, slot: int) -> Self:
        """What a decision holds, if it allowed."""
        return cls(
            decision.held, decision.program.concurrency, slot, decision.program.costs, decision.subjects
        )


class Correction(NamedTuple):
    """What rates have counted already of quantities that were not known yet; it is corrected.

    Attributes:
        reserved: meter to the quantity that was counted.
        rates: the fields of the rates.
        at_ms: when that was.
    """

    reserved: Mapping[str, int] = _NOTHING
    rates: frozenset[str] = frozenset()
    at_ms: int = 0


class Mark(NamedTuple):
    """That a request with an idempotency key has ended.

    Attributes:
        digest: of the key.
        billed: whether it is remembered from now on.
    """

    digest: str
    billed: bool

    @classmethod
    def of(cls, decision: PreparedDecision, *, billed: bool) -> Self | None:
        """Of a request so decided; None: it has no such key, or is a repeat."""
        return cls(decision.digest, billed) if decision.digest else None


_NAME_MAX: Final = 300  # Bytes; a model's name comes from outside.
_TOLD: Final = ("model", "provider")


def audited_by(view: CustomerView) -> Script | None:
    """The script that settles and enters it; None: it is not entered, as are addresses of the anonymous."""
    return None if view.anonymous else view.cache.settle_audited


def audit_keys(view: CustomerView) -> Sequence[str]:
    """The keys that it has besides; none where nothing is entered."""
    return () if audited_by(view) is None else (view.cache.keys.audit(view.shard),)


def audit_lines(
    used: Used, occurred_ms: int | None, priced: str, subjects: str = "", event_id: str = ""
) -> bytes:
    """Lines for the audit log: time if not now (ms), model, provider, prices, subjects, event id, units.

    The last two are JSON.

    A reader takes the lines that it knows: it ignores further ones, and does without missing ones.
    """
    lines = [b"" if occurred_ms is None else b"%d" % occurred_ms]
    names = (used.dimensions.get(name, "").replace("\n", " ") for name in _TOLD)
    lines += [*(name.encode("utf-8", "replace")[:_NAME_MAX] for name in names), priced.encode()]
    rest = [subjects, json.dumps(event_id) if event_id else "", json.dumps(used.units) if used.units else ""]
    while rest and not rest[-1]:
        rest.pop()
    lines += [text.encode() for text in rest]
    return b"\n".join(lines) if any(lines) else b""


TOLD_EVERY_MS: Final = 3_600_000
"""The most log lines about jobs that do not end."""


class Ends(Protocol):
    """A job whose end may be seen."""

    def end(self) -> None:
        """Give back what is held for it."""


class OutlivingWorks:
    """The jobs by the provider's ids.

    Attributes:
        works: those for which something is held.
        owners: who began the latest ones: counted without a look into the store while that is away.
        told_ms: when it was last told that one does not end.
    """

    __slots__ = ("owners", "told_ms", "works")

    def __init__(self) -> None:
        self.works: dict[str, Ends] = {}
        self.owners: dict[str, CustomerView] = {}
        self.told_ms = -TOLD_EVERY_MS


@lru_cache(maxsize=16)
def nothing_kept(_slot: int) -> dict[bool, Any]:
    """Stand for the settlements of a decision that one request in a slot was made by. It stays empty."""
    return {}


def is_made_again(decision: PreparedDecision, slot: int) -> bool:
    """Whether a decision was made in a slot before; from now on it was."""
    kept = decision.settlements
    if not kept:
        decision.settlements = nothing_kept(slot)
    return kept is nothing_kept(slot)
