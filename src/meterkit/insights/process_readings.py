"""Readings of this process for metrics: lanes to the store, and spools on this host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.store.spool_file import SPOOL_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from meterkit.redis.lane import Lane
    from meterkit.store.spool_file import SpoolInfo, SpoolState


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
        "1 where an event loop of this process serves without the store, which is down.",
        lambda lanes: int(any(lane.is_down for lane in lanes)),
    ),
    LaneFigure(
        "store.breaker.opened",
        "How often the store was down, by each event loop, and by each node of a cluster.",
        lambda lanes: sum(lane.opened for lane in lanes),
        only_grows=True,
    ),
    LaneFigure(
        "settlements.waiting",
        "Usage that the store has not acknowledged yet, in settlements.",
        lambda lanes: sum(lane.unsettled for lane in lanes),
    ),
    LaneFigure(
        "allotments.granted",
        "Requests that the store has admitted in advance, in units of allotments.",
        lambda lanes: sum(lane.allotments.granted for lane in lanes if lane.allotments),
        only_grows=True,
    ),
    LaneFigure(
        "allotments.returned",
        "Units of allotments that were given back unused.",
        lambda lanes: sum(lane.allotments.returned for lane in lanes if lane.allotments),
        only_grows=True,
    ),
    LaneFigure(
        "allotments.unused",
        "Units of allotments that are there to be used.",
        lambda lanes: sum(lane.allotments.unused for lane in lanes if lane.allotments),
    ),
    LaneFigure(
        "settlements.lost",
        "Settlements that the store has lost, or that found no room to wait.",
        lambda lanes: sum(lane.lost for lane in lanes),
        only_grows=True,
    ),
)


class SpoolsInState(NamedTuple):
    """The spools in one state.

    Attributes:
        size: of all of them, in bytes.
        age_s: how long ago the oldest was begun; 0: there is none.
    """

    files: int
    size: int
    age_s: float


def spools_by_state(seen: Collection[SpoolInfo], now_ms: int) -> Mapping[SpoolState, SpoolsInState]:
    """All states, those that no spool is in included."""
    found: dict[SpoolState, SpoolsInState] = {}
    for state in SPOOL_STATES:
        spools = [one for one in seen if one.state == state]
        oldest_ms = min((one.begun_ms for one in spools), default=now_ms)
        size = sum(one.size for one in spools)
        found[state] = SpoolsInState(len(spools), size, (now_ms - oldest_ms) / 1000)
    return found
