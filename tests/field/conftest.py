"""Prints the table of deployments after the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from field.matrix import Matrix

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_matrix = Matrix()


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    """Takes what came of each deployment."""
    return _matrix


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    lines = list(_matrix.lines())
    if lines:
        terminalreporter.section("field matrix")
        for line in lines:
            terminalreporter.write_line(line)
