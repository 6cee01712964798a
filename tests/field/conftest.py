"""Prints the table of deployments after the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from _pytest.terminal import TerminalReporter

from field.matrix import LINE, Matrix


@pytest.fixture
def matrix(record_property: Callable[[str, object], None]) -> Matrix:
    """Takes what came of the deployment under test."""
    return Matrix(record_property)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == LINE]
    if lines:
        terminalreporter.section(LINE)
        for line in sorted(lines):
            terminalreporter.write_line(line)
