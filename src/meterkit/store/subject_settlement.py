"""What a settlement records of the subjects of its customer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.catalog.models import SPEND
from meterkit.decisions.keys import concurrency_field, meter_field, rate_field
from meterkit.decisions.policies import FIXED_WINDOW, rate_numbers
from meterkit.decisions.subjects import SubjectHold, member_of, subject_budget
from meterkit.store.subjects import Packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meterkit.catalog import Catalog, Entitlement
    from meterkit.store.hold import Correction, Held, Used
    from meterkit.store.subjects import Subjects

_NOTHING_HELD: Final = SubjectHold()


def settled(
    subjects: Subjects,
    catalog: Catalog,
    held: Held,
    used: Used,
    correction: Correction,
    spent: Mapping[str, int],
    *,
    rated_ms: int,
    passed_ms: int,
) -> Packed:
    """What the settlement script gets of them.

    Args:
        subjects: the customer's.
        catalog: what is sold.
        held: what is given back.
        used: what is recorded and rated.
        correction: what rates have counted of it before.
        spent: micro-units that are counted as spent, by kind.
        rated_ms: when rates are to count it, if that is over; else 0.
        passed_ms: how long that is ago.
    """
    words, numbers, kinds = list[str](), list[int](), list[str]()
    for kind, subject in subjects.given:
        hold = held.subjects.get(kind, _NOTHING_HELD)
        if kind not in subjects.limits and hold is _NOTHING_HELD:
            continue
        meters = _meters(subjects, kind, hold, used, spent)
        rates = list(_rates(subjects, kind, hold, used, correction, rated_ms=rated_ms, passed_ms=passed_ms))
        spans = _spans(subjects, catalog, kind, spent, rated_ms)
        if meters or rates or spans:
            kinds.append(kind)
            words += (member_of(kind, subject), *meters, *(field for field, _ in (*rates, *spans)))
            numbers += (len(meters), len(rates) + len(spans), len(spans))
            numbers += (number for pair in meters.values() for number in pair)
            numbers += (number for _, terms in (*rates, *spans) for number in terms)
    return Packed.of(subjects.keys_of(kinds), words, numbers)


def _meters(
    subjects: Subjects, kind: str, hold: SubjectHold, used: Used, spent: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Recorded and given back, by field; every counter is counted, for the figures of usage."""
    recorded: Mapping[str, int] = used.recorded if kind in subjects.limits else {}
    found = {
        meter_field(name): (recorded.get(name, 0), hold.quantities.get(name, 0))
        for name in dict.fromkeys((*recorded, *hold.quantities))
    }
    found |= {concurrency_field(name): (0, 1) for name in hold.concurrency}
    if hold.spent or spent.get(kind):
        found[meter_field(SPEND)] = (spent.get(kind, 0), hold.spent)
    return found


def _rates(
    subjects: Subjects,
    kind: str,
    hold: SubjectHold,
    used: Used,
    correction: Correction,
    *,
    rated_ms: int,
    passed_ms: int,
) -> Iterable[tuple[str, tuple[int, ...]]]:
    """What rates have not counted yet; of those that counted a reservation, what it differs by."""
    limits: Mapping[str, Entitlement] = subjects.limits[kind].limits if kind in subjects.limits else {}
    for meter, given in limits.items():
        for rate in given.rates:
            field = rate_field(meter, rate.window_ms, rate.algorithm)
            number, window, _, refill = rate_numbers(rate, meter)
            terms, quantity = (number, window, refill), used.rated.get(meter, 0)
            if meter in correction.reserved and field in hold.rates:
                yield field, (*terms, quantity - correction.reserved[meter], correction.at_ms)
            elif quantity and rated_ms:
                leaked = max(0, passed_ms) * refill // window
                yield field, (*terms, max(0, quantity - leaked), rated_ms)
            elif quantity:
                yield field, (*terms, quantity, 0)


def _spans(
    subjects: Subjects, catalog: Catalog, kind: str, spent: Mapping[str, int], rated_ms: int
) -> list[tuple[str, tuple[int, ...]]]:
    """The day or hour of a budget, which counts what is spent."""
    budget = subject_budget(subjects.limits[kind], catalog) if kind in subjects.limits else None
    if budget is None or not budget.window_ms or not spent.get(kind):
        return []
    return [(budget.field, (FIXED_WINDOW, budget.window_ms, 0, spent[kind], rated_ms))]
