"""The result of an examination: checks, findings, and checks that could not run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from meterkit.health.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence


class UnseenError(Exception):
    """The check cannot run; the message says why."""


@dataclass(slots=True, kw_only=True)
class Health:
    """The result.

    Attributes:
        findings: what is wrong.
        looked_at: each check, and in short what it saw.
        not_looked_at: each check that could not be made, and why.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    looked_at: dict[str, str] = field(default_factory=dict[str, str])
    not_looked_at: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, one: Health, *, of: str) -> None:
        """Add what was seen of one server, by its address where there are several; else it is empty."""
        where = f"{of}: " if of else ""
        self.findings += [replace(finding, problem=f"{where}{finding.problem}") for finding in one.findings]
        for checks, more in ((self.looked_at, one.looked_at), (self.not_looked_at, one.not_looked_at)):
            for check, text in more.items():
                before = f"{checks[check]}; " if check in checks else ""
                checks[check] = f"{before}{where}{text}"

    def sort(self, first: Sequence[str]) -> None:
        """Put some checks first, in their order; the others follow as they came."""
        for checks in (self.looked_at, self.not_looked_at):
            inverse = {check: place for place, check in enumerate(first)}
            in_order = sorted(checks.items(), key=lambda item: inverse.get(item[0], len(first)))
            checks.clear()
            checks.update(in_order)
