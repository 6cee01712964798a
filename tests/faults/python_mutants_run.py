"""A pytest plugin that tries Python mutants: for each a process is forked, and a test must fail in it.

It collects the tests once. Workers, forked from there, first run their part of the tests under coverage, so
that it is known which tests execute a line. Then they fork for each mutant: the child swaps the code and runs
the tests of that line until one fails. Servers of a whole session are started once in each worker.

``METERKIT_MUTANTS`` names modules or folders of ``src/meterkit``. ``METERKIT_MUTANTS_FOUND`` names the file
that gets a line for each mutant. ``METERKIT_MUTANTS_SAMPLE`` names a file with lines of a mutant and, behind
a tab, of a test that notices it; by default all mutants are tried that are not known to survive.
``METERKIT_MUTANTS_MAP`` names a file that keeps which tests execute a line.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import resource
import signal
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

import coverage

from faults.python_mutants import SOURCE, apply, look, mutants, survivors_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import pytest

    from faults.python_mutants import Mutant

ROOMS: Final = ("customers", "decisions", "delivery", "outbox", "redis", "store")
AT_ONCE: Final = int(os.environ.get("METERKIT_MUTANTS_AT_ONCE", "2"))
TESTS_MAX: Final = 2_000
"""So many tests, the quickest, are run for a mutant that survives them."""
TESTS_S: Final = 60
"""And so many seconds they take in all: enough that none is left out where a busy machine slows them."""
FAILS: Final = "fails: "
ITSELF: Final = "the module cannot be run with it"
CPU_S: Final = 20
WAIT_S: Final = 10
"""A mutant ends by processor time where it works without end, and by time where it waits without end. Load
can only make one seem noticed, so it fails no run."""


@dataclass(slots=True)
class Covered:
    """Which tests execute a line, and how long each test takes."""

    tests: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    took_s: dict[str, float] = field(default_factory=dict[str, float])

    def dump(self) -> str:
        """As JSON, each test's name once."""
        numbers = {test: nth for nth, test in enumerate(self.took_s)}
        tests = {place: [numbers[test] for test in tests] for place, tests in self.tests.items()}
        return json.dumps([list(self.took_s.items()), tests])

    @classmethod
    def parse(cls, text: str) -> Covered:
        """The inverse of :meth:`dump`."""
        took, tests = json.loads(text)
        names = [name for name, _ in took]
        return cls({place: [names[nth] for nth in nths] for place, nths in tests.items()}, dict(took))

    def add(self, other: Covered) -> None:
        for place, tests in other.tests.items():
            self.tests.setdefault(place, []).extend(tests)
        self.took_s |= other.took_s

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that execute a mutant's line, the quickest first.

        Of a constant: first the tests that execute a line with its name, then the other tests of its file.
        """
        if mutant.is_constant:
            naming = self._ordered(_naming(mutant.scope) & self.tests.keys())
            own = self._ordered(place for place in self.tests if place.startswith(f"{mutant.file}:"))
            return list(dict.fromkeys([*naming, *own]))
        lines = (f"{mutant.file}:{line}" for line in mutant.lines)
        return self._ordered(next(([line] for line in lines if self.tests.get(line)), list[str]()))

    def _ordered(self, places: Iterable[str]) -> list[str]:
        """The tests that execute some lines, the quickest first."""
        found = {test for place in places for test in self.tests[place]}
        return sorted(found, key=lambda test: (self.took_s[test], test))


@functools.cache
def _naming(constant: str) -> frozenset[str]:
    """The lines of the library that name a constant."""
    name = re.compile(rf"\b{constant}\b")
    return frozenset(
        f"{path.relative_to(SOURCE).as_posix()}:{number}"
        for room in ROOMS
        for path in (SOURCE / room).rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if name.search(line)
    )


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run the tests for each mutant, in place of once."""
    for path in SOURCE.rglob("*.py"):
        with suppress(ImportError):
            if path.name != "__main__.py":
                importlib.import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))
    look()
    every = [one for place in os.environ["METERKIT_MUTANTS"].split() for one in mutants(place)]
    items = {item.nodeid: item for item in session.items}
    asked = dict(_asked())
    chosen = [one for one in every if str(one) in asked] if asked else _left(every)
    covered = Covered() if asked and all(asked.values()) else _covered(session)
    tried = [(one, [items[test] for test in _tests(one, asked, covered) if test in items]) for one in chosen]
    _in_workers(lambda worker: _Worker(session, covered.took_s).try_all(tried[worker::AT_ONCE]))
    _note(f"{len(tried)} mutants")
    return True


def _asked() -> Iterator[tuple[str, str]]:
    named = os.environ.get("METERKIT_MUTANTS_SAMPLE", "")
    for line in Path(named).read_text("utf-8").splitlines() if named else ():
        mutant, _, test = line.partition("\t")
        yield mutant, test


def _left(every: Sequence[Mutant]) -> list[Mutant]:
    known = survivors_known()
    return [one for one in every if str(one) not in known]


def _tests(mutant: Mutant, asked: Mapping[str, str], covered: Covered) -> Iterator[str]:
    if test := asked.get(str(mutant)):
        yield test
        return
    took_s = 0.0
    for found in covered.of(mutant)[:TESTS_MAX]:
        yield found
        took_s += covered.took_s[found]
        if took_s > TESTS_S:
            return


def _note(line: str) -> None:
    """Add a line to what is found; processes do so at once."""
    with Path(os.environ["METERKIT_MUTANTS_FOUND"]).open("a", encoding="utf-8") as found:
        found.write(f"{line}\n")


def _in_workers(work: Callable[[int], None]) -> None:
    """Call a function in each worker, a process of its own, with the worker's number; wait for them all."""
    for worker in range(AT_ONCE):
        if not os.fork():
            failed = 1
            try:
                work(worker)
                failed = 0
            except BaseException as error:
                _note(f"a worker fails\t{error!r}")
                raise
            finally:
                os._exit(failed)
    failures = [os.wait()[1] for _ in range(AT_ONCE)]
    assert not any(failures), failures


def _covered(session: pytest.Session) -> Covered:
    found, kept = Covered(), os.environ.get("METERKIT_MUTANTS_MAP", "")
    path = Path(kept or f"{os.environ['METERKIT_MUTANTS_FOUND']}.map")
    if not path.exists():
        modules = sorted({item.path for item in session.items})

        def record(worker: int) -> None:
            mine = set(modules[worker::AT_ONCE])
            part = _recorded(session, [item for item in session.items if item.path in mine])
            Path(f"{path}.{worker}").write_text(part.dump(), "utf-8")

        _in_workers(record)
        for worker in range(AT_ONCE):
            found.add(Covered.parse(Path(f"{path}.{worker}").read_text("utf-8")))
        path.write_text(found.dump(), "utf-8")
    return Covered.parse(path.read_text("utf-8"))


def _recorded(session: pytest.Session, items: Sequence[pytest.Item]) -> Covered:
    """Run tests under coverage. One that fails without a mutant would notice each: it is left out."""
    include = [f"{SOURCE / room}/*" for room in ROOMS]
    measured = coverage.Coverage(data_file=None, config_file=False, include=include)
    found = Covered()
    if not items:
        return found
    measured.start()
    for item in items:
        measured.switch_context(item.nodeid)
        began = monotonic()
        if _passes(session, item):
            found.took_s[item.nodeid] = round(monotonic() - began, 3)
        else:
            _note(f"fails without a mutant\t{item.nodeid}")
    measured.stop()
    data, tests = measured.get_data(), defaultdict[str, list[str]](list)
    for path in data.measured_files():
        for line, contexts in data.contexts_by_lineno(path).items():
            place = f"{Path(path).relative_to(SOURCE).as_posix()}:{line}"
            tests[place] = [test for test in contexts if test in found.took_s]
    found.tests = tests
    return found


def _passes(session: pytest.Session, item: pytest.Item) -> bool:
    """Run a test. What it shares with others of its module ends with it; what the session shares does not."""
    before = session.testsfailed
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=session)
    return session.testsfailed == before


class _Worker:
    """Forks for one mutant after the other."""

    def __init__(self, session: pytest.Session, took_s: Mapping[str, float]) -> None:
        self._session, self._took_s = session, took_s
        # Tests that noticed a mutant of a function are likely to notice the next one there.
        self._noticed: defaultdict[str, Counter[str]] = defaultdict(Counter[str])
        self._is_sound: dict[str, bool] = {}

    def try_all(self, tried: Sequence[tuple[Mutant, Sequence[pytest.Item]]]) -> None:
        self._start_server(tried)
        for mutant, items in tried:
            _note(self._tried(mutant, items) if items else f"not run\t{mutant}")

    def _start_server(self, tried: Sequence[tuple[Mutant, Sequence[pytest.Item]]]) -> None:
        """Start the server of the session by a test: each child would start its own."""
        items = (item for _, each in tried for item in each)
        first = next((item for item in items if "valkey" in getattr(item, "fixturenames", ())), None)
        if first is not None:
            _passes(self._session, first)

    def _tried(self, mutant: Mutant, items: Sequence[pytest.Item]) -> str:
        counts = self._noticed[f"{mutant.file}: {mutant.scope}"]
        items = sorted(items, key=lambda item: -counts[item.nodeid])
        while True:
            told = self._told(mutant, items)
            ends, told = told.startswith(FAILS), told.removeprefix(FAILS)
            if told in {"not applied", "survives"}:
                return f"{told}\t{mutant}"
            if told == ITSELF:
                return f"noticed\t{mutant}\t{told}"
            if told not in self._is_sound:
                one = [item for item in items if item.nodeid == told]
                self._is_sound[told] = self._told(None, one) == "survives"
                if not self._is_sound[told]:
                    _note(f"fails without a mutant\t{told}")
            if self._is_sound[told]:
                counts[told] += 1
                return f"noticed\t{mutant}\t{told}" + ("" if ends else "\tdoes not end")
            items = [item for item in items if self._is_sound.get(item.nodeid, True)]

    def _told(self, mutant: Mutant | None, items: Sequence[pytest.Item]) -> str:
        """What a child says at last: that all tests pass, or the one that fails or does not end."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            os.close(reader)
            try:
                with os.fdopen(writer, "w", encoding="utf-8", buffering=1) as told:
                    self._try(mutant, items, told.write)
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # What a test has left.
        with os.fdopen(reader, encoding="utf-8") as told:
            return told.read().splitlines()[-1]

    def _try(
        self, mutant: Mutant | None, items: Sequence[pytest.Item], tell: Callable[[str], object]
    ) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        tell(f"{ITSELF}\n")
        with suppress(BaseException):
            if mutant is not None and not apply(mutant):
                tell("not applied\n")
                return
            for item in items:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(WAIT_S + ceil(4 * self._took_s.get(item.nodeid, 0)))
                tell(f"{item.nodeid}\n")
                if not _passes(self._session, item):
                    tell(f"{FAILS}{item.nodeid}\n")
                    return
            tell("survives\n")
