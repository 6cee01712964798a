"""What a process says once and not at every call that meets it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog

__all__ = ["Alarms"]

_logger = logging.getLogger("meterkit")

_TOLD_MAX: Final = 10_000


class Alarms:
    """Lines of the log, each said once a process for what it is about; after ten thousand of them, again."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._told: set[tuple[str, ...]] = set()

    def unknown_plan(self, customer: str, plan: str) -> None:
        """A customer is on a plan that the plans file of this process does not have."""
        if self._is_new("plan", plan):
            _logger.error(
                "plan %r, which customer %r is on, is not in %s of this process: they get the default plan "
                "%r, and what they use now is counted so for good; give every process the new plans file "
                "before customers are put on its plans; said once for this plan",
                *(plan, customer, self._catalog.source, self._catalog.default_plan),
            )

    def late(self, customer: str, recorded: Mapping[str, int], period_ms: int) -> None:
        """Usage of a closed period came."""
        if self._is_new("late", customer, str(period_ms)):
            is_dead = self._catalog.billing.late_usage == "dead_letter"
            fate = "is not billed" if is_dead else "is billed in this one"
            _logger.warning(
                "customer %r: %s came late: the period that began %s is closed, and what comes for it now %s "
                "(billing.late_usage: %s); said once for this customer and period",
                customer,
                ", ".join(f"{quantity} of {meter}" for meter, quantity in recorded.items() if quantity),
                from_ms(period_ms).isoformat(),
                fate,
                self._catalog.billing.late_usage,
            )

    def _is_new(self, *what: str) -> bool:
        if what in self._told:
            return False
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told.add(what)
        return True
