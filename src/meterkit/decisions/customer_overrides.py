"""Overrides of one customer as they are stored: of meters and of features, each with its end. Pure.

They stand in one mapping. The entry of a meter is an entitlement in the notation of the plans file, and has
the key ``@until_ms`` besides if it ends. Where its price takes effect later, ``@overage`` has the overage
that holds until ``@overage_until_ms``. The features stand under ``@features``, what subjects get under
``@subjects``, by ``KIND:ID``. No name of a plans file
begins with ``@``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from meterkit.catalog.models import SPEND
from meterkit.catalog.subjects import BUDGET
from meterkit.decisions.subscription import NEVER_MS
from meterkit.errors import MeterkitError

_UNTIL: Final = "@until_ms"
_OVERAGE: Final = "@overage"
_OVERAGE_UNTIL: Final = "@overage_until_ms"
_MARK: Final = "@"
_FEATURES: Final = "@features"
_SUBJECTS: Final = "@subjects"
_HAS: Final = "has"
OVERRIDDEN_SUBJECTS_MAX: Final = 500
"""The most subjects of a customer that have overrides."""

_OF_OTHERS: Final = frozenset({_FEATURES, _SUBJECTS})

Stored = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Overrides:
    """The overrides that hold at an instant.

    Attributes:
        meters: meter to an entitlement in the notation of the plans file.
        features: feature to whether the customer has it.
        ends: when an override ends (ms since the epoch), by the meter, or by ``feature NAME``, or by
            ``subject KIND:ID``.
        subjects: ``KIND:ID`` to limits by meter, and ``budget``, in the notation of the plans file.
        price_changes: when the price of a meter's override takes effect (ms since the epoch), where that is
            later.
        asked: ``meters`` with the prices that take effect later.
    """

    meters: Mapping[str, Mapping[str, object]]
    features: Mapping[str, bool]
    ends: Mapping[str, int]
    subjects: Mapping[str, Mapping[str, object]]
    price_changes: Mapping[str, int]
    asked: Mapping[str, Mapping[str, object]]


NO_OVERRIDES: Final = Overrides({}, {}, {}, {}, {}, {})


def overrides_at(stored: Stored, now_ms: int) -> Overrides:
    """The overrides that hold at an instant; each ends at the millisecond of its end."""
    if not stored:
        return NO_OVERRIDES
    of_meters = {name: entry for name, entry in stored.items() if name not in _OF_OTHERS}
    asked = {name: given for name, entry in of_meters.items() if (given := _entitlement_at(entry, now_ms))}
    price_changes = {name: at_ms for name, entry in of_meters.items() if now_ms < (at_ms := _price_ms(entry))}
    unchanged = {
        name: {**asked.get(name, {}), "overage": of_meters[name][_OVERAGE]} for name in price_changes
    }
    features = _live_entries(stored, _FEATURES, now_ms)
    subjects = _live_entries(stored, _SUBJECTS, now_ms)
    by_name = {
        **of_meters,
        **{f"feature {name}": entry for name, entry in features.items()},
        **{f"subject {name}": entry for name, entry in subjects.items()},
    }
    return Overrides(
        meters={**asked, **unchanged},
        features={name: entry.get(_HAS) is True for name, entry in features.items()},
        ends={
            name: until_ms
            for name, entry in by_name.items()
            if now_ms < (until_ms := _end_ms(entry)) < NEVER_MS
        },
        subjects={
            name: {key: value for key, value in entry.items() if key != _UNTIL}
            for name, entry in subjects.items()
        },
        price_changes=price_changes,
        asked=asked,
    )


def overridden_label(overrides: Overrides, meter: str) -> str:
    """Label of the overage price that an override gives a meter, which may have left the plans file.

    Empty: it gives none. See :class:`~meterkit.decisions.price_segments.PriceSegment`.
    """
    bill = _bill_of(overrides.meters.get(meter, {}))
    cents = bill.get("amount_cents")
    return "" if cents is None else f"{bill.get('per') or 1}/{cents}"


def next_end_ms(stored: Stored, now_ms: int) -> int:
    """Instant at which the next override ends, or its price takes effect; :data:`NEVER_MS`: none will."""
    if not stored:
        return NEVER_MS
    found = overrides_at(stored, now_ms)
    return min((*found.ends.values(), *found.price_changes.values()), default=NEVER_MS)


def has_end_within(stored: Stored, since_ms: int, until_ms: int) -> bool:
    """Whether an override of a meter ends, or its price takes effect, after an instant and by another one."""
    return any(
        since_ms < at_ms <= until_ms
        for name, entry in stored.items()
        if name not in _OF_OTHERS
        for at_ms in (_end_ms(entry), _price_ms(entry))
    )


def has_timed_price(stored: Stored) -> bool:
    """Whether an override has a price of overage that ends, has ended, or takes effect later."""
    return any(
        name not in _OF_OTHERS and (_OVERAGE in entry or ("overage" in entry and _UNTIL in entry))
        for name, entry in stored.items()
    )


def without_ended(stored: Stored, now_ms: int) -> dict[str, dict[str, object]]:
    """Stored mapping without ended overrides, and without overage that a later price has replaced."""
    kept = with_overrides(stored, {}, None, until_ms=None, now_ms=now_ms)
    return {
        name: entry
        if name in _OF_OTHERS or now_ms < _price_ms(entry)
        else {key: value for key, value in entry.items() if key not in {_OVERAGE, _OVERAGE_UNTIL}}
        for name, entry in kept.items()
    }


def with_overage_until(
    stored: Stored, meter: str, overage: object, *, until_ms: int
) -> dict[str, dict[str, object]]:
    """Stored mapping in which a meter keeps other overage until an instant, and then has the override's."""
    entry = {**stored.get(meter, {}), _OVERAGE: overage, _OVERAGE_UNTIL: until_ms}
    return {**{name: dict(kept) for name, kept in stored.items()}, meter: entry}


def with_overrides(
    stored: Stored,
    meters: Mapping[str, Mapping[str, object]],
    features: Mapping[str, bool] | None,
    *,
    until_ms: int | None,
    now_ms: int,
) -> dict[str, dict[str, object]]:
    """Stored mapping with some overrides set; ended ones are dropped.

    Args:
        stored: the mapping before.
        meters: meter to its override; an empty one removes it.
        features: feature to whether the customer has it; None: no change; empty: all are removed.
        until_ms: end of the new overrides; None: they have none.
        now_ms: the instant.
    """
    end: dict[str, object] = {} if until_ms is None else {_UNTIL: until_ms}
    kept = {name: dict(entry) for name, entry in stored.items() if name not in _OF_OTHERS}
    kept |= {name: {**entry, **end} if entry else {} for name, entry in meters.items()}
    found = {name: entry for name, entry in kept.items() if _is_effective(entry, now_ms)}
    known = {} if features == {} else _live_entries(stored, _FEATURES, now_ms)
    known |= {name: {_HAS: has, **end} for name, has in (features or {}).items()}
    left: dict[str, object] = {name: entry for name, entry in known.items() if now_ms < _end_ms(entry)}
    if left:
        found[_FEATURES] = left
    of_subjects: dict[str, object] = {**_live_entries(stored, _SUBJECTS, now_ms)}
    return {**found, _SUBJECTS: of_subjects} if of_subjects else found


def with_subject_override(
    stored: Stored, member: str, given: Mapping[str, object], *, until_ms: int | None, now_ms: int
) -> dict[str, dict[str, object]]:
    """Stored mapping with the override of a subject, ``KIND:ID``, set; an empty one removes it.

    Raises:
        MeterkitError: too many subjects of the customer have overrides.
    """
    end: dict[str, object] = {} if until_ms is None else {_UNTIL: until_ms}
    found = {name: dict(entry) for name, entry in stored.items() if name != _SUBJECTS}
    left: dict[str, object] = {**_live_entries(stored, _SUBJECTS, now_ms)}
    left.pop(member, None)
    if given:
        left[member] = {**given, **end}
    if len(left) > OVERRIDDEN_SUBJECTS_MAX:
        raise MeterkitError(
            f"override of {member:.80}: {OVERRIDDEN_SUBJECTS_MAX} subjects of this customer have overrides,"
            " which is the most; take one back with {}, or give all subjects of a kind more in the plan"
        )
    return {**found, _SUBJECTS: left} if left else found


def without_amounts(stored: Stored) -> dict[str, dict[str, object]]:
    """Stored mapping without amounts of money: those were of another currency.

    What they are beside stays, such as the cap of overage.
    """
    kept = {name: _without_price(entry) for name, entry in stored.items() if name not in {SPEND, _SUBJECTS}}
    subjects = cast("Mapping[str, Mapping[str, object]]", stored.get(_SUBJECTS, {}))
    left: dict[str, object] = {
        member: limits
        for member, entry in subjects.items()
        if (limits := {key: value for key, value in entry.items() if key != BUDGET}).keys() - {_UNTIL}
    }
    return {name: entry for name, entry in {**kept, _SUBJECTS: left}.items() if entry}


def _without_price(entry: Mapping[str, object]) -> dict[str, object]:
    """Entry of a meter without the price of its overage; empty if nothing else is left."""
    kept = {key: value for key, value in entry.items() if key not in {_OVERAGE, _OVERAGE_UNTIL}}
    overage = cast("Mapping[str, Any] | str | None", kept.get("overage"))
    bill: Mapping[str, object] = (overage.get("bill") or {}) if isinstance(overage, Mapping) else {}
    if "amount_cents" in bill:
        rest = {key: value for key, value in bill.items() if key not in {"per", "amount_cents"}}
        kept["overage"] = {"bill": rest}
        if not rest:
            del kept["overage"]
    return kept if kept.keys() - {_UNTIL} else {}


def without_priced_overage(meters: Stored) -> dict[str, Mapping[str, object]]:
    """Overrides of meters without overage that has a price of its own."""
    return {
        name: {key: value for key, value in given.items() if key != "overage"} if has_price(given) else given
        for name, given in meters.items()
    }


def has_price(given: Mapping[str, object]) -> bool:
    """Whether an override gives overage a price of its own."""
    return "amount_cents" in _bill_of(given)


def _bill_of(given: Mapping[str, object]) -> Mapping[str, Any]:
    """The terms at which an entitlement bills overage; empty: it names none."""
    overage = cast("Mapping[str, Any] | str | None", given.get("overage"))
    bill = overage.get("bill") if isinstance(overage, Mapping) else None
    return cast("Mapping[str, Any]", bill) if isinstance(bill, Mapping) else {}


def _live_entries(stored: Stored, kind: str, now_ms: int) -> dict[str, Mapping[str, object]]:
    """Entries of features or subjects that have not ended."""
    entries = cast("Mapping[str, Mapping[str, object]]", stored.get(kind, {}))
    return {name: entry for name, entry in entries.items() if now_ms < _end_ms(entry)}


def _is_effective(entry: Mapping[str, Any], now_ms: int) -> bool:
    """Whether any part of an entry is in effect, or will be."""
    return bool(_entitlement_at(entry, now_ms)) or now_ms < _price_ms(entry)


def _entitlement_at(entry: Mapping[str, object], now_ms: int) -> dict[str, object]:
    """Entitlement of an entry as it was set; empty if it has ended."""
    live: Mapping[str, object] = entry if now_ms < _end_ms(entry) else {}
    return {key: value for key, value in live.items() if not key.startswith(_MARK)}


def _price_ms(entry: Mapping[str, Any]) -> int:
    """Instant at which the price of an override takes effect; 0: it has."""
    until_ms = entry.get(_OVERAGE_UNTIL)
    return until_ms if isinstance(until_ms, int) else 0


def _end_ms(entry: Mapping[str, Any]) -> int:
    until_ms = entry.get(_UNTIL)
    return until_ms if isinstance(until_ms, int) else NEVER_MS
