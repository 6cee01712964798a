"""What a plan gives of a gauge: how far it may be filled, and for how long beyond what is included. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.decision import GaugeLevel, Policy
from meterkit.decisions.keys import meter_field
from meterkit.decisions.packed import merge_json, unpack_field
from meterkit.decisions.periods import HOLD_SLOT_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement, Meter
    from meterkit.decisions.decision import Reason

_BYTES = frozenset({"byte", "bytes"})


class GaugeLimit(NamedTuple):
    """How far a gauge may be filled.

    Attributes:
        included: what the plan's price covers.
        most: what is tolerated for a time.
        grace_ms: for how long, since the level went above ``included``.
        keeps: whether a level that a change of plan has left above ``included`` may grow as far as was
            included before.
    """

    included: int
    most: int
    grace_ms: int
    keeps: bool = False

    @classmethod
    def of(cls, entitlement: Entitlement, *, keeps: bool = False) -> Self | None:
        """What a plan gives; None: no limit."""
        included, overage = entitlement.included, entitlement.overage
        if included is None:
            return None
        most = min(included * (100 + (overage.percent or 0)) // 100, QUANTITY_MAX)
        return cls(included, most, overage.grace_ms or 0, keeps)

    def at(self, level: StoredLevel, now_ms: int) -> int:
        """The limit at an instant."""
        since_ms = level.over_ms or now_ms
        is_over = level.level > self.included and now_ms - since_ms >= self.grace_ms
        limit = self.included if is_over else self.most
        if not self.keeps or level.level <= self.included:
            return limit
        return QUANTITY_MAX if level.fitted < 0 else max(limit, level.fitted)


class StoredLevel(NamedTuple):
    """How far a gauge is filled.

    Attributes:
        level: in its unit.
        over_ms: since when that is above what is included (ms; 0: it is not).
        fitted: what was included when it last was not above that; -1: it was unlimited.
    """

    level: int = 0
    over_ms: int = 0
    fitted: int = 0

    @classmethod
    def read(cls, packed: bytes | None) -> Self:
        """Read what the store keeps; None: nothing.

        Raises:
            ValueError: it is damaged.
        """
        if packed is None:
            return cls()
        values = unpack_field(packed)
        if [type(value) for value in values] != [int] * len(cls._fields):
            raise ValueError(f"not a level: {packed!r:.80}")
        return cls(*map(int, values))


def presigned_bytes_at(packed: bytes | None, now_ms: int) -> int:
    """How much presigned uploads hold at an instant; ``packed`` is the field of the store.

    Raises:
        ValueError: it is damaged.
    """
    values: list[Any] = [] if packed is None else unpack_field(packed)
    if len(values) % 2 or any(type(value) is not int for value in values):
        raise ValueError(f"not the holds of presigned uploads: {packed!r:.80}")
    slot = now_ms // HOLD_SLOT_MS
    return sum(held for ends, held in zip(values[::2], values[1::2], strict=True) if ends > slot)


def gauge_policy(meter: Meter, limit: GaugeLimit) -> Policy:
    """What stands for a gauge among the policies; no field tells of it: it has neither window nor period."""
    return Policy(
        name=meter.name,
        meter=meter.name,
        kind="gauge",
        quota=limit.most,
        window_s=None,
        quota_unit=meter.unit,
    )


def gauge_refusal(policy: Policy, limit: int, used: int, requested: int) -> tuple[Reason, GaugeLevel]:
    """Why a gauge refuses, and the figures behind that."""
    unit = policy.quota_unit or ""
    reason: Reason = "storage" if unit in _BYTES else "seats"
    return reason, GaugeLevel(meter=policy.meter, unit=unit, limit=limit, used=used, requested=requested)


def add_gauge_terms(further: str, gauges: Mapping[str, GaugeLimit], *, first: int) -> str:
    """What the decision script looks at besides its fields, as JSON, with gauges that are to grow.

    Args:
        further: what else it looks at; empty: nothing.
        gauges: each gauge and its limit.
        first: the place of the first one's field, among those that the script reads.
    """
    levels = [
        (meter, meter_field(meter), place, *limit)
        for place, (meter, limit) in enumerate(gauges.items(), first)
    ]
    if not levels:
        return further
    return merge_json(further, json.dumps({"levels": levels}, separators=(",", ":")))
