"""Count the CPU seconds of each test, its processes' too, and refuse a dear one without a reason.

CPU, not time: a busy machine makes a test late, not dear. What fixtures of a module or of the whole run take
to be set up counts for none of the tests that share them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

__all__ = ["BUDGET_S", "Costs", "pytest_addoption", "pytest_configure"]

BUDGET_S: Final = 0.5
# CPU seconds double on a shared core, and again on a slow machine: neither may refuse a test.
_REFUSED_S: Final = 6.0
# By these make mutants, soak and coverage have a test take longer.
_LENGTHENING: Final = frozenset(
    {
        "COVERAGE_RUN",
        "METERKIT_ALL_MUTANTS",
        "METERKIT_DECISIONS",
        "METERKIT_SOAK_S",
        "METERKIT_SPIKE_CUSTOMERS",
    }
)
_SHOWN: Final = 20
_PROPERTY: Final = "cpu_s"
_BEGAN: Final = pytest.StashKey[float]()
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=Path, metavar="FILE", help="write the CPU seconds of each test")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"dear(why): why the test takes more than {BUDGET_S} s of CPU.")
    config.pluginmanager.register(Costs(config.getoption("--costs")), "costs")


class Costs:
    """The costs of a run, in each of its workers and in the process that reports."""

    def __init__(self, written_to: Path | None) -> None:
        self._written_to = written_to
        self._shared_s = 0.0
        self._by_test: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        began, shared_s = cpu_seconds(), self._shared_s
        try:
            return (yield)
        finally:
            # One fixture may ask for another, whose part is in this one's.
            self._shared_s = shared_s + cpu_seconds() - began

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        item.stash[_BEGAN] = cpu_seconds() - self._shared_s
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        yield
        cost = cpu_seconds() - self._shared_s - item.stash[_BEGAN]
        item.user_properties.append((_PROPERTY, round(cost, 3)))
        is_long = item.config.getoption("--whole") or not os.environ.keys().isdisjoint(_LENGTHENING)
        if cost > _REFUSED_S and item.get_closest_marker("dear") is None and not is_long:
            pytest.fail(
                f"the test took {cost:.1f} s of CPU; a test may take {BUDGET_S} s. Make it cheaper, or say"
                ' why it needs more: @pytest.mark.dear("why").',
                pytrace=False,
            )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._by_test[report.nodeid] = sum(
                float(str(cost)) for name, cost in report.user_properties if name == _PROPERTY
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        dearest = sorted(self._by_test.items(), key=lambda one: (-one[1], one[0]))
        if self._written_to is not None:
            lines = (f"{cost:8.3f}  {test}\n" for test, cost in dearest)
            self._written_to.write_text("".join(lines), encoding="utf-8")
        if len(dearest) > _SHOWN:
            total = sum(self._by_test.values())
            terminalreporter.write_sep("=", f"the dearest of {total:.0f} CPU seconds")
            for test, cost in dearest[:_SHOWN]:
                terminalreporter.write_line(f"{cost:7.2f} s  {test}")


def cpu_seconds() -> float:
    """CPU seconds of this process, of the children it has waited for, and of those that still run.

    What a child used moves from the second sum to the first when it is waited for: a difference of two
    readings counts it once. A process that was left by its parent counts no longer.
    """
    times = os.times()
    waited = times.children_user + times.children_system
    return time.process_time() + waited + sum(map(_used, _children(os.getpid())))


def _children(pid: int) -> list[int]:
    """Processes that were started by one, by any thread of it."""
    found: list[int] = []
    try:
        for thread in (_PROC / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:  # It has ended, or there is no /proc here.
        pass
    return found


def _used(pid: int) -> float:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0
    # The name of the program, in brackets, may have blanks in it; fields 14 to 17 are of the process.
    fields = stat.rpartition(")")[2].split()[11:15]
    return sum(map(int, fields)) / _TICKS + sum(map(_used, _children(pid)))
