"""Arguments of scripts about a customer: keys, revision, numbers, and the subjects of a request. Pure."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from meterkit.catalog.subjects import override_subject
from meterkit.decisions.compiled_decision import UNKNOWN_MODEL
from meterkit.decisions.customer_state import NO_STATE, keep_holds_only
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
    from meterkit.decisions.keys import CustomerKeys, Keys
    from meterkit.decisions.limit_policies import Demand

GivenSubjects = tuple[tuple[str, str], ...]
"""Kind and id of each subject of a request."""
_QUARTER_HOUR_MS: Final = 900_000
_CUSTOMER_BYTES: Final = 4 * 8
_FOUR_HUNDRED_DAYS_MS: Final = 34_560_000_000  # As totals: see docs/design/store.md


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

    def price_units(self, quantities: Mapping[str, int], model: str | None) -> dict[str, Fraction]:
        """Price of recorded units of a model in micro-units, by kind of the subjects with a budget."""
        kinds = [kind for kind, limits in self.limits.items() if limits.budget is not None]
        priced = quantities if kinds else dict[str, int]()
        return dict.fromkeys(kinds, cost_of(priced, self._entitlements, self._catalog, model))


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


def pack_head(
    program: Program, keys: CustomerKeys, *, sha: str, rev: str, others: PackedSubjects = NOTHING_PACKED
) -> bytes:
    """Pack a decision's request up to the terms; ``others``: its subjects."""
    names: list[str] = [keys.counters, keys.state, keys.totals]
    if program.extra_terms:
        names += (keys.grants, keys.ledger, *((keys.levels,) if program.gauges else ()))
    names += others.keys
    head: tuple[str | int, ...] = ("EVALSHA", sha, len(names), *names, rev)
    # Behind these: terms, what follows them, words and terms of subjects, clock.
    count = len(head) + 2 + len(program.trailing_arguments("d")) + others.width
    return b"*%d\r\n%b" % (count, pack_each(head))


def pack_terms(effective: EffectivePlan, rev: str, numbers: Iterable[int]) -> bytes:
    """Pack the numbers of a script: the customer's, how long counters outlive a period, the rest."""
    return pack_customer_terms(effective) + pack_numbers((_outlive_ms(rev), *numbers))


def pack_customer_terms(effective: EffectivePlan) -> bytes:
    """Pack the customer's numbers: end of the view's validity, and the bounds of both periods."""
    bounds = effective.bounds
    until_ms = min(effective.valid_until_ms, bounds.next_end_ms)
    return pack_numbers((until_ms, bounds.start_ms, bounds.end_ms, bounds.next_end_ms))


def pack_tail(program: Program, mode: str, rev: str) -> tuple[bytes, bytes]:
    """Pack a decision's request before and behind the customer's numbers."""
    rest = pack_numbers((_outlive_ms(rev), program.keep_ms, *program.numbers))
    return b"$%d\r\n" % (_CUSTOMER_BYTES + len(rest)), b"%b\r\n%b" % (
        rest,
        pack_each(program.trailing_arguments(mode)),
    )


def _outlive_ms(rev: str) -> int:
    return _QUARTER_HOUR_MS if rev == NO_STATE else _FOUR_HUNDRED_DAYS_MS
