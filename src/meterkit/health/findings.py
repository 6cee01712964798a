"""Helpers of the checks: a skipped check, one finding, and names in a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.insights.health_report import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence


_NAMED_MAX: Final = 5


class CheckSkippedError(Exception):
    """A check cannot run; the message says why."""


def one_finding(*, check: str, problem: str, cure: str) -> list[Finding]:
    """Return a list with one finding."""
    return [Finding(check=check, problem=problem, cure=cure)]


def join_names(names: Sequence[str]) -> str:
    """Join the first five names, and count the others."""
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")
