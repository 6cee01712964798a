"""How the event loops of a process reach the store, and what waits in them for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meterkit.redis.lane import Lane

__all__ = ["LANE_FIGURES", "LaneFigure"]


@dataclass(frozen=True, slots=True)
class LaneFigure:
    """One figure of all lanes of a process.

    Attributes:
        name: its words apart by dots, without the ``meterkit`` before them.
        meaning: in a sentence.
        of: counts it.
        only_grows: whether it counts what has happened so far.
    """

    name: str
    meaning: str
    of: Callable[[Sequence[Lane]], int]
    only_grows: bool = False


LANE_FIGURES: Final = (
    LaneFigure(
        "store.connected",
        "1 where every event loop of this process has its connection to the store.",
        lambda lanes: int(bool(lanes) and all(lane.connected for lane in lanes)),
    ),
    LaneFigure(
        "store.breaker.open",
        "1 where an event loop of this process answers without the store, which is away.",
        lambda lanes: int(any(lane.is_away for lane in lanes)),
    ),
    LaneFigure(
        "store.breaker.opened",
        "How often the store was away, by each event loop, and by each node of a cluster.",
        lambda lanes: sum(lane.opened for lane in lanes),
        only_grows=True,
    ),
    LaneFigure(
        "settlements.waiting",
        "Usage that the store has not acknowledged yet, in settlements.",
        lambda lanes: sum(lane.unsettled for lane in lanes),
    ),
    LaneFigure(
        "settlements.lost",
        "Settlements that the store has lost, or that found no room to wait.",
        lambda lanes: sum(lane.lost for lane in lanes),
        only_grows=True,
    ),
)
