"""Subjects of a request: their keys, their limits, and their arguments for scripts."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from meterkit.catalog.subjects import override_subject
from meterkit.decisions.compiled_decision import UNKNOWN_MODEL
from meterkit.decisions.customer_state import keep_holds_only
from meterkit.decisions.packed import pack_texts
from meterkit.decisions.subjects import SubjectDemand, SubjectHold, compile_subject, cost_of, subject_member
from meterkit.redis.connection import pack_each, pack_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from fractions import Fraction

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.catalog.models import SubjectPlan
    from meterkit.decisions.compiled_decision import ModelPricing, Program
    from meterkit.decisions.customer_state import EffectivePlan
    from meterkit.decisions.keys import Keys
    from meterkit.decisions.policies import Demand

GivenSubjects = tuple[tuple[str, str], ...]
"""Kind and id of each subject of a request."""


class PackedSubjects(NamedTuple):
    """Packed subjects for a script.

    Attributes:
        keys: the index, then the counters of each.
        width: number of arguments.
        arguments: packed arguments: words, terms.
    """

    keys: tuple[str, ...]
    width: int
    arguments: bytes

    @classmethod
    def of(cls, keys: tuple[str, ...], words: Sequence[str], numbers: Sequence[int]) -> PackedSubjects:
        """Pack arguments; without subjects: none."""
        if not words:
            return NOTHING_PACKED
        return cls(keys, 2, pack_each((pack_texts(words), pack_numbers(numbers))))


NOTHING_PACKED: Final = PackedSubjects((), 0, b"")


class Subjects:
    """Subjects of a customer's request, at one state of the customer.

    Args:
        customer: the customer's id.
        given: the subjects.
        effective: the customer's plan with overrides.
        entitlements: the customer's entitlement of each meter.
        catalog: the plans file.
        keys: names of keys.

    Attributes:
        limits: limits of the subjects that the plan declares, by kind.
        is_plain: whether none of them has an override.
    """

    __slots__ = ("_catalog", "_entitlements", "_index", "_keys", "customer", "given", "is_plain", "limits")

    def __init__(
        self,
        customer: str,
        given: GivenSubjects,
        effective: EffectivePlan,
        entitlements: Mapping[str, Entitlement],
        catalog: Catalog,
        keys: Keys,
    ) -> None:
        self.customer = customer
        self.given = given
        self._catalog = catalog
        self._entitlements = entitlements
        self._index = keys.subjects(customer)
        self._keys = {kind: keys.subject(customer, kind, subject) for kind, subject in given}
        self.limits: dict[str, SubjectPlan] = {}
        self.is_plain = True
        for kind, subject in given:
            limits = effective.plan.subjects.get(kind)
            if limits is not None:
                own = effective.subject_overrides.get(subject_member(kind, subject))
                self.is_plain = self.is_plain and own is None
                self.limits[kind] = limits if own is None else override_subject(catalog, limits, own)

    def without_rates(self) -> Self:
        """Copy of the subjects without rates: limited by included quantities and budgets only."""
        found = copy(self)
        found.limits = {
            kind: replace(given, limits=keep_holds_only(given.limits, given.limits, ()))
            for kind, given in self.limits.items()
        }
        return found

    def ask(
        self,
        demands: Mapping[str, Demand],
        *,
        in_flight: bool,
        rates_only: bool,
        at: ModelPricing = UNKNOWN_MODEL,
    ) -> tuple[SubjectDemand, ...]:
        """Demands on each subject that the plan declares; ``at``: terms of the requested model."""
        return tuple(
            compile_subject(
                limits,
                demands,
                self._entitlements,
                self._catalog,
                in_flight=in_flight,
                rates_only=rates_only,
                rows=at.rows,
            )
            for limits in self.limits.values()
        )

    def extend(
        self,
        program: Program,
        demands: Mapping[str, Demand],
        *,
        in_flight: bool,
        rates_only: bool,
        at: ModelPricing = UNKNOWN_MODEL,
    ) -> Program:
        """Add the demands on the subjects to a program."""
        if not self.limits:
            return program
        return program.with_subjects(self.ask(demands, in_flight=in_flight, rates_only=rates_only, at=at))

    def pack(self, asked: Iterable[SubjectDemand]) -> PackedSubjects:
        """Pack the demands for the decision script."""
        words, numbers, kinds = list[str](), list[int](), list[str]()
        members = dict(self.given)
        for one in asked:
            kinds.append(one.kind)
            words += (subject_member(one.kind, members[one.kind]), *one.fields)
            numbers += one.numbers
        return PackedSubjects.of(self.keys_of(kinds), words, numbers)

    def keys_of(self, kinds: Iterable[str]) -> tuple[str, ...]:
        """Keys of the index, and of the counters of subjects of these kinds."""
        return self._index, *(self._keys[kind] for kind in kinds)

    def dump_declared(self) -> str:
        """Kind to id of declared subjects, as JSON for the audit log; empty: none."""
        known = {kind: subject for kind, subject in self.given if kind in self.limits}
        return json.dumps(known, ensure_ascii=False, separators=(",", ":")) if known else ""

    def price_units(self, quantities: Mapping[str, int], model: str | None) -> Fraction | None:
        """Price of recorded units of a model in micro-units; None: no subject has a budget."""
        if not any(limits.budget for limits in self.limits.values()):
            return None
        return cost_of(quantities, self._entitlements, self._catalog, model)


NO_HOLDS: Final[Mapping[str, SubjectHold]] = {}


def collect_holds(asked: Collection[SubjectDemand]) -> Mapping[str, SubjectHold]:
    """Holds of subjects by an allowed decision, by kind."""
    return {one.kind: one.hold for one in asked} if asked else NO_HOLDS


def serialize_holds(holds: Mapping[str, SubjectHold]) -> dict[str, Any]:
    """Convert holds for a spool record."""
    return {
        kind: [dict(hold.quantities), [*hold.concurrency], hold.spent, sorted(hold.rates)]
        for kind, hold in holds.items()
    }


def parse_holds(holds: Mapping[str, Any]) -> dict[str, SubjectHold]:
    """The inverse of :func:`serialize_holds`."""
    return {
        kind: SubjectHold(quantities, tuple(concurrency), spent, frozenset(rates))
        for kind, (quantities, concurrency, spent, rates) in holds.items()
    }
