"""Types of the checks' report, as of :mod:`meterkit.health`, which pages do not import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class HealthFinding(Protocol):
    """A problem of a deployment with its cure, as of :class:`meterkit.health.findings.Finding`."""

    @property
    def check(self) -> str:
        """The name of the check."""
        ...

    @property
    def problem(self) -> str:
        """The observation and its consequence."""
        ...

    @property
    def cure(self) -> str:
        """The remedy; commands stand between backticks."""
        ...


class HealthReport(Protocol):
    """The result of the checks, as of :class:`meterkit.health.findings.Health`."""

    @property
    def findings(self) -> Sequence[HealthFinding]:
        """The problems."""
        ...

    @property
    def looked_at(self) -> Mapping[str, str]:
        """Check to a summary of its reading."""
        ...

    @property
    def not_looked_at(self) -> Mapping[str, str]:
        """Check that could not run to the reason."""
        ...
