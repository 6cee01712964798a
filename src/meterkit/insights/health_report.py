"""The report of a deployment's checks: findings with their cures, checks that ran, checks that could not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem of a deployment, with its cure.

    Attributes:
        check: the name of the check.
        problem: the observation and its consequence.
        cure: the remedy.
    """

    check: str
    problem: str
    cure: str


@dataclass(slots=True, kw_only=True)
class Health:
    """The result of an examination.

    Attributes:
        findings: the problems.
        looked_at: check to a summary of its reading.
        not_looked_at: check that could not run to the reason.
    """

    findings: list[Finding] = field(default_factory=list[Finding])
    looked_at: dict[str, str] = field(default_factory=dict[str, str])
    not_looked_at: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, one: Health, *, of: str) -> None:
        """Add the result of one server; ``of`` is its address if there are several, otherwise empty."""
        where = f"{of}: " if of else ""
        self.findings += [replace(finding, problem=f"{where}{finding.problem}") for finding in one.findings]
        for checks, more in ((self.looked_at, one.looked_at), (self.not_looked_at, one.not_looked_at)):
            for check, text in more.items():
                before = f"{checks[check]}; " if check in checks else ""
                checks[check] = f"{before}{where}{text}"

    def sort(self, first: Sequence[str]) -> None:
        """Order the checks: those of ``first``, then the others as they came."""
        for checks in (self.looked_at, self.not_looked_at):
            positions = {check: position for position, check in enumerate(first)}
            in_order = sorted(checks.items(), key=lambda item: positions.get(item[0], len(first)))
            checks.clear()
            checks.update(in_order)


class CheckSkippedError(Exception):
    """A check cannot run; the message says why."""


def one_finding(*, check: str, problem: str, cure: str) -> list[Finding]:
    """Return a list with one finding."""
    return [Finding(check=check, problem=problem, cure=cure)]


def join_names(names: Sequence[str]) -> str:
    """Join the first five names, and count the others."""
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")
