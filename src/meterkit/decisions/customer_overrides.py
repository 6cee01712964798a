"""Overrides of one customer as they are stored: of meters and of features, each with its end. Pure.

They stand in one mapping. The entry of a meter is an entitlement in the notation of the plans file, and has
the key ``@until_ms`` besides if it ends. The features stand under ``@features``. No name of a plans file
begins with ``@``, so that an older release cannot read such an entry: it keeps it, and the
plan's own limits hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from meterkit.decisions.subscription import NEVER_MS

_UNTIL: Final = "@until_ms"
_FEATURES: Final = "@features"
_HAS: Final = "has"

Stored = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Overrides:
    """The overrides that hold at an instant.

    Attributes:
        meters: meter to an entitlement in the notation of the plans file.
        features: feature to whether the customer has it.
        ends: when an override ends (ms since the epoch), by the meter, or by ``feature NAME``.
    """

    meters: Mapping[str, Mapping[str, object]]
    features: Mapping[str, bool]
    ends: Mapping[str, int]


NO_OVERRIDES: Final = Overrides({}, {}, {})


def overrides_at(stored: Stored, now_ms: int) -> Overrides:
    """The overrides that hold at an instant; each ends at the millisecond of its end."""
    if not stored:
        return NO_OVERRIDES
    meters, features, ends = dict[str, Mapping[str, object]](), dict[str, bool](), dict[str, int]()
    for name, entry in stored.items():
        if name == _FEATURES:
            continue
        until_ms = _end_ms(entry)
        if now_ms < until_ms:
            meters[name] = {key: value for key, value in entry.items() if key != _UNTIL}
        if now_ms < until_ms < NEVER_MS:
            ends[name] = until_ms
    for name, entry in _features(stored).items():
        until_ms = _end_ms(entry)
        if now_ms < until_ms:
            features[name] = entry.get(_HAS) is True
        if now_ms < until_ms < NEVER_MS:
            ends[f"feature {name}"] = until_ms
    return Overrides(meters, features, ends)


def next_end_ms(stored: Stored, now_ms: int) -> int:
    """When the next override ends; :data:`NEVER_MS`: none will."""
    return min(overrides_at(stored, now_ms).ends.values(), default=NEVER_MS) if stored else NEVER_MS


def with_overrides(
    stored: Stored,
    meters: Mapping[str, Mapping[str, object]],
    features: Mapping[str, bool] | None,
    *,
    until_ms: int | None,
    now_ms: int,
) -> dict[str, dict[str, object]]:
    """The stored mapping after some overrides were given; those that have ended are left out.

    Args:
        stored: the mapping before.
        meters: meter to its override; an empty one takes it back.
        features: feature to whether the customer has it; None: they stay; empty: they are taken back.
        until_ms: when these end; None: they do not.
        now_ms: the instant.
    """
    end: dict[str, object] = {} if until_ms is None else {_UNTIL: until_ms}
    kept = {name: dict(entry) for name, entry in stored.items() if name != _FEATURES}
    kept |= {name: {**entry, **end} if entry else {} for name, entry in meters.items()}
    found = {name: entry for name, entry in kept.items() if entry and now_ms < _end_ms(entry)}
    known = {} if features == {} else dict(_features(stored))
    known |= {name: {_HAS: has, **end} for name, has in (features or {}).items()}
    left: dict[str, object] = {name: entry for name, entry in known.items() if now_ms < _end_ms(entry)}
    return {**found, _FEATURES: left} if left else found


def _features(stored: Stored) -> Mapping[str, Mapping[str, object]]:
    return cast("Mapping[str, Mapping[str, object]]", stored.get(_FEATURES, {}))


def _end_ms(entry: Mapping[str, Any]) -> int:
    until_ms = entry.get(_UNTIL)
    return until_ms if isinstance(until_ms, int) else NEVER_MS
