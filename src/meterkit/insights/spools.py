"""The spools on this host, added up by what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meterkit.store.spools import SPOOL_STATES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meterkit.store.spools import SpoolSeen, SpoolState

__all__ = ["SpoolsInState", "spools_by_state"]


class SpoolsInState(NamedTuple):
    """The spools in one state.

    Attributes:
        size: of all of them, in bytes.
        age_s: how long ago the oldest was begun; 0: there is none.
    """

    files: int
    size: int
    age_s: float


def spools_by_state(seen: Collection[SpoolSeen], now_ms: int) -> Mapping[SpoolState, SpoolsInState]:
    """All states, those that no spool is in included."""
    found: dict[SpoolState, SpoolsInState] = {}
    for state in SPOOL_STATES:
        spools = [one for one in seen if one.state == state]
        oldest_ms = min((one.begun_ms for one in spools), default=now_ms)
        size = sum(one.size for one in spools)
        found[state] = SpoolsInState(len(spools), size, (now_ms - oldest_ms) / 1000)
    return found
