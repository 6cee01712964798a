"""Contradictions between a customer's ledger and state, as after a change by hand in the store. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from meterkit.decisions.transitions import WORDS, InForce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Catalog
    from meterkit.customers.history import HistoryEntry
    from meterkit.customers.states import Found
    from meterkit.decisions.transitions import Kind

_WATCHED: Final[tuple[Kind, ...]] = ("plan", "status", "seats")


def ledger_faults(entries: Sequence[HistoryEntry], found: Found, catalog: Catalog) -> list[str]:
    """Contradictions within a customer's ledger, and between ledger and state; empty: none.

    Each entry begins with the value at which the one before it ends. The state has the value of the last one.

    Args:
        entries: of the ledger, oldest first.
        found: what is stored of the customer.
        catalog: the plans file.
    """
    if found.force is None:
        return []
    faults: list[str] = []
    for kind in _WATCHED:
        words = WORDS[kind](found.force)
        own = [entry for entry in entries if entry.kind == kind]
        for last, entry in pairwise(own):
            if (last.after or "") != (entry.before or ""):
                faults.append(
                    f"its ledger has {kind} {last.after!r} since {last.at:%Y-%m-%d %H:%M}, and the entry of"
                    f" {entry.at:%Y-%m-%d %H:%M} begins with {entry.before!r}"
                )
        if own and (own[-1].after or "") != words:
            faults.append(f"its ledger ends with {kind} {own[-1].after!r}, and {words!r} is in force")
    return faults + _state_faults(found, found.force, catalog)


def _state_faults(found: Found, force: InForce, catalog: Catalog) -> list[str]:
    """Status, seats or a plan of the state that no entry has brought.

    Where another plans file changes the plan, such as the default plan, that is entered at the next look.
    """
    state, now = found.state, InForce.of(found.state, catalog, force.at_ms, force)
    named = {state.plan, None if state.subscription is None else state.subscription.plan}
    is_by_file = now.plan not in named or force.plan not in catalog.plans or now.access != force.access
    return [
        f"its state has {kind} {WORDS[kind](now)!r}, and its ledger {WORDS[kind](force)!r}"
        for kind in _WATCHED
        if WORDS[kind](now) != WORDS[kind](force) and not (kind == "plan" and is_by_file)
    ]
