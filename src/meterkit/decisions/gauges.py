"""Gauge limits: included level, tolerated level, and the grace period above the included one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from meterkit.catalog.models import QUANTITY_MAX
from meterkit.decisions.decision import GaugeLevel, Policy
from meterkit.decisions.keys import meter_field
from meterkit.decisions.packed import compact_json, merge_json, unpack_field
from meterkit.decisions.periods import HOLD_SLOT_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Entitlement, Meter
    from meterkit.decisions.decision import Reason

_BYTES = frozenset({"byte", "bytes"})


class GaugeLimit(NamedTuple):
    """Limit of a gauge.

    Attributes:
        included: level that the plan's price covers.
        most: level that is tolerated during the grace period.
        grace_ms: length of that period, from when the level rose above ``included``.
        keeps: whether a level above ``included`` after a change of plan may grow up to the former limit.
    """

    included: int
    most: int
    grace_ms: int
    keeps: bool = False

    @classmethod
    def of(cls, entitlement: Entitlement, *, keeps: bool = False) -> Self | None:
        """Limit by an entitlement; None: no limit."""
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
    """Stored level of a gauge.

    Attributes:
        level: in its unit.
        over_ms: instant at which it rose above the included level (ms; 0: it is not above).
        fitted: included level when the gauge was last not above it; -1: it was unlimited.
    """

    level: int = 0
    over_ms: int = 0
    fitted: int = 0

    @classmethod
    def read(cls, packed: bytes | None) -> Self:
        """Read the stored field; None: no level is stored.

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
    """Bytes that presigned uploads hold at an instant.

    Raises:
        ValueError: it is damaged.
    """
    values: list[Any] = [] if packed is None else unpack_field(packed)
    if len(values) % 2 or any(type(value) is not int for value in values):
        raise ValueError(f"not the holds of presigned uploads: {packed!r:.80}")
    slot = now_ms // HOLD_SLOT_MS
    return sum(held for ends, held in zip(values[::2], values[1::2], strict=True) if ends > slot)


def gauge_policy(meter: Meter, limit: GaugeLimit) -> Policy:
    """Policy of a gauge; no response header shows it, because it has neither window nor period."""
    return Policy(name=meter.name, meter=meter.name, kind="gauge", quota=limit.most, quota_unit=meter.unit)


def gauge_refusal(policy: Policy, limit: int, used: int, requested: int) -> tuple[Reason, GaugeLevel]:
    """Reason and figures of a gauge's refusal."""
    unit = policy.quota_unit or ""
    reason: Reason = "storage" if unit in _BYTES else "seats"
    return reason, GaugeLevel(meter=policy.meter, unit=unit, limit=limit, used=used, requested=requested)


def add_gauge_terms(further: str, gauges: Mapping[str, GaugeLimit], *, first: int) -> str:
    """Add the gauges that are to grow to the decision script's JSON terms.

    Args:
        further: the JSON terms so far; may be empty.
        gauges: each gauge and its limit.
        first: position of the first gauge's field among those that the script reads.
    """
    levels = [
        (meter, meter_field(meter), place, *limit)
        for place, (meter, limit) in enumerate(gauges.items(), first)
    ]
    if not levels:
        return further
    return merge_json(further, compact_json({"levels": levels}))
