"""Python mutants: the library made wrong on purpose, in one place at a time, and swapped in while it runs.

Left alone are the words of errors, log calls, default values of arguments and class bodies.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import importlib
import os
import pickle
import re
import resource
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from pathlib import Path
from time import monotonic
from types import CodeType, FunctionType
from typing import Any, Final, NamedTuple, TypeVar

import coverage
import pytest

SOURCE: Final = Path(__file__).parents[2] / "src" / "meterkit"

COMPARED: Final[Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
COMPUTED: Final[Mapping[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
LOGS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
CALLED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
LARGE: Final = 10
"""From there on a constant is doubled: a limit, a span or a size that is one higher shows in nothing."""

_T = TypeVar("_T", bound=ast.AST)

_functions: Final = list[FunctionType]()
_caches: Final = list[Any]()


class _Scope(NamedTuple):
    name: str
    is_constant: bool
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One file with one place wrong.

    ``scope`` is the function, or the constant. ``lines`` are those of the expression and of its statement:
    tests that run either may notice. ``nth`` is a node in the order of :func:`ast.walk`.
    """

    file: str
    scope: str
    is_constant: bool
    lines: tuple[int, int]
    nth: int
    change: int
    name: str

    def __str__(self) -> str:
        return self.name

    def tree(self) -> ast.Module:
        tree = _parsed(self.file)
        node = next(islice(ast.walk(tree), self.nth, None))
        wrong = list(_wrongs(node))[self.change]
        node.__class__, node.__dict__ = wrong.__class__, wrong.__dict__
        return ast.fix_missing_locations(tree)


def mutants(place: str) -> list[Mutant]:
    """Every mutant of a module or of a folder, those that do what the original does among them."""
    root = SOURCE / place
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [one for path in paths for one in _of_file(path.relative_to(SOURCE).as_posix())]


def survivors_known() -> dict[str, str]:
    """Mutants that no test notices, each with the reason that stands above it in the file."""
    found, reason = dict[str, str](), ""
    for line in Path(__file__).with_name("python_survivors.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


def _of_file(file: str) -> Iterator[Mutant]:
    tree = _parsed(file)
    scopes, left_out = dict[ast.AST, _Scope](), set[ast.AST]()
    _note_scopes(tree, (), scopes, left_out)
    alike = Counter[str]()
    for nth, node in enumerate(ast.walk(tree)):
        scope = scopes.get(node)
        if scope is None or node in left_out or not isinstance(node, ast.expr | ast.stmt):
            continue
        for change, wrong in enumerate(_wrongs(node)):
            name = f"{file}: {scope.name}: {_shown(node)} -> {_shown(wrong)}"
            alike[name] += 1
            yield Mutant(
                file=file,
                scope=scope.name,
                is_constant=scope.is_constant,
                lines=(node.lineno, scope.line),
                nth=nth,
                change=change,
                name=name if alike[name] == 1 else f"{name} #{alike[name]}",
            )


def _parsed(file: str) -> ast.Module:
    return ast.parse(_text(file))


@functools.cache
def _text(file: str) -> str:
    """The text of a file when it was read first: an edit during a run changes nothing."""
    return (SOURCE / file).read_text("utf-8")


def _shown(node: ast.AST) -> str:
    """Code in one line; of a statement with a body its head."""
    shown = ast.unparse(node)
    return shown.partition(":\n")[0] if isinstance(node, ast.If | ast.While) else " ".join(shown.split())


def _note_scopes(
    node: ast.AST, names: tuple[str, ...], scopes: dict[ast.AST, _Scope], left_out: set[ast.AST]
) -> None:
    """Note of each node in which function or constant it is; leave out what is no code of one."""
    for child in ast.iter_child_nodes(node):
        inner, left = names, list[ast.AST | None]()
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                left = [*child.decorator_list, child.args, child.returns]
                inner = (*names, child.name, "<locals>")
                for statement in (each for of in child.body for each in ast.walk(of)):
                    if isinstance(statement, ast.stmt):
                        scope = _Scope(".".join(inner[:-1]), is_constant=False, line=statement.lineno)
                        scopes.update(dict.fromkeys(ast.walk(statement), scope))
            case ast.ClassDef():
                inner = (*names, child.name)
            case ast.AnnAssign():
                left = [child.annotation]
                if not names and isinstance(child.target, ast.Name) and child.value is not None:
                    scope = _Scope(child.target.id, is_constant=True, line=child.lineno)
                    scopes.update(dict.fromkeys(ast.walk(child.value), scope))
            case ast.Raise():
                # Words of errors have tests of their own; whether one is raised is the condition's.
                left = [child.exc]
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(attr=called))
                | ast.Await(value=ast.Call(func=ast.Attribute(attr=called)))
            ) if called in LOGS:
                left = [child]
            case _:
                pass
        left_out.update(each for of in left if of is not None for each in ast.walk(of))
        _note_scopes(child, inner, scopes, left_out)


def _wrongs(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """An expression or a statement made wrong, in each way."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                for other in COMPARED[type(operator)]:
                    yield _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
        case ast.BoolOp():
            yield _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() | ast.AugAssign() if type(node.op) in COMPUTED:
            yield _with(node, op=COMPUTED[type(node.op)]())
        case ast.If() | ast.While() | ast.IfExp() if not _is_tried_itself(node.test):
            yield _with(node, test=ast.UnaryOp(op=ast.Not(), operand=node.test))
        case ast.Call(func=ast.Name(id=called)) if called in CALLED:
            yield _with(node, func=ast.Name(id=CALLED[called], ctx=ast.Load()))
        case ast.Constant(value=bool()):
            yield _with(node, value=not node.value)
        case ast.Constant(value=int(value)):
            yield _with(node, value=value + 1 if value < LARGE else value * 2)
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield ast.Pass()
        case ast.Return() if node.value is not None and not _is_wrong_otherwise(node.value):
            yield ast.Return(value=ast.Constant(value=None))
        case _:
            pass


def _with(node: _T, **changed: Any) -> _T:
    wrong = copy.copy(node)
    vars(wrong).update(changed)
    return wrong


def _is_tried_itself(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare | ast.BoolOp) or (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    )


def _is_wrong_otherwise(value: ast.expr) -> bool:
    return _is_tried_itself(value) or isinstance(value, ast.Constant | ast.BinOp | ast.IfExp)


def look() -> None:
    kind = type(functools.cache(_codes))
    gc.unfreeze()  # What conftest.py freezes is not listed.
    for found in gc.get_objects():
        if type(found) is FunctionType and found.__code__.co_filename.startswith(str(SOURCE)):
            _functions.append(found)
        elif type(found) is kind and found.__module__.startswith("meterkit"):
            _caches.append(found)
    gc.freeze()


def apply(mutant: Mutant) -> bool:
    """Make this process wrong; whether it could."""
    path = str(SOURCE / mutant.file)
    code = compile(mutant.tree(), path, "exec", dont_inherit=True)
    is_done = _set_constants(mutant, path, code) if mutant.is_constant else _set_codes(path, code)
    for cache in _caches:
        cache.cache_clear()
    return is_done


def _set_codes(path: str, code: CodeType) -> bool:
    wrong = {(each.co_qualname, each.co_firstlineno): each for each in _codes(code)}
    is_done = False
    for found in _functions:
        known = found.__code__
        if known.co_filename == path:
            other = wrong.get((known.co_qualname, known.co_firstlineno))
            # A statement less may free a name of an outer function: such code fits no closure there is.
            if other is not None and other != known and other.co_freevars == known.co_freevars:
                found.__code__ = other
                is_done = True
    return is_done


def _set_constants(mutant: Mutant, path: str, code: CodeType) -> bool:
    """Give a constant another value, and those made of it, in each module that has them."""
    own = next(module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == path)
    scope: dict[str, Any] = {"__name__": own.__name__, "__file__": path, "__package__": own.__package__}
    exec(code, scope)  # noqa: S102 - the module itself, with one value changed
    known = {
        name: getattr(own, name)
        for name, value in scope.items()
        if type(value) in {int, bool, float, str, bytes} and getattr(own, name, value) != value
    }
    known[mutant.scope] = getattr(own, mutant.scope)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("meterkit"):
            for name, value in known.items():
                if getattr(module, name, None) is value:
                    setattr(module, name, scope[name])
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


ROOMS: Final = ("customers", "decisions", "delivery", "outbox", "redis", "store")
AT_ONCE: Final = int(os.environ.get("METERKIT_MUTANTS_AT_ONCE", "2"))
TESTS_S: Final = 30
"""So long tests, the narrowest first, are run for a mutant that survives them."""
FAILS: Final = "fails: "
ITSELF: Final = "the module cannot be run with it"
CPU_S: Final = 20
WAIT_S: Final = 10
"""A test of a mutant ends by processor time where it works without end, and by time where it waits without
end. Load can only make one seem noticed, so it fails no run."""


@dataclass(slots=True)
class Covered:
    """Which tests execute a line, how many lines each test executes, and how long it takes."""

    tests: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    lines: Counter[str] = field(default_factory=Counter[str])
    took_s: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, other: Covered) -> None:
        for place, tests in other.tests.items():
            self.tests.setdefault(place, []).extend(tests)
            self.lines.update(tests)
        self.took_s |= other.took_s

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that execute a mutant's line, the narrowest first.

        Of a constant: first the tests that execute a line with its name, then the other tests of its file.
        """
        if mutant.is_constant:
            naming = self._ordered(_naming(mutant.scope) & self.tests.keys())
            own = self._ordered(place for place in self.tests if place.startswith(f"{mutant.file}:"))
            return list(dict.fromkeys([*naming, *own]))
        lines = (f"{mutant.file}:{line}" for line in mutant.lines)
        return self._ordered(next(([line] for line in lines if self.tests.get(line)), list[str]()))

    def _ordered(self, places: Iterable[str]) -> list[str]:
        """The tests that execute some lines, those first that execute few others and are quick."""
        found = {test for place in places for test in self.tests[place]}
        return sorted(found, key=lambda test: (self.lines[test] * self.took_s[test] ** 0.5, test))


@functools.cache
def _naming(constant: str) -> frozenset[str]:
    name = re.compile(rf"\b{constant}\b")
    return frozenset(
        f"{path.relative_to(SOURCE).as_posix()}:{number}"
        for room in ROOMS
        for path in (SOURCE / room).rglob("*.py")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if name.search(line)
    )


def pytest_runtestloop(session: pytest.Session) -> bool:
    for path in SOURCE.rglob("*.py"):
        with suppress(ImportError):
            if path.name != "__main__.py":
                importlib.import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))
    look()
    every = [one for place in os.environ["METERKIT_MUTANTS"].split() for one in mutants(place)]
    items = {item.nodeid: item for item in session.items}
    asked = dict(_asked())
    known = survivors_known()
    chosen = [one for one in every if (str(one) in asked if asked else str(one) not in known)]
    covered = Covered() if asked and all(asked.values()) else _covered(session)
    tried = [(one, [items[test] for test in _tests(one, asked, covered) if test in items]) for one in chosen]
    _in_workers(lambda worker: _Worker(session, covered.took_s).try_all(tried[worker::AT_ONCE]))
    _note(f"{len(tried)} mutants")
    return True


def _asked() -> Iterator[tuple[str, str]]:
    if named := os.environ.get("METERKIT_MUTANTS_SAMPLE"):
        for line in Path(named).read_text("utf-8").splitlines():
            mutant, _, test = line.partition("\t")
            yield mutant, test


def _tests(mutant: Mutant, asked: Mapping[str, str], covered: Covered) -> Iterator[str]:
    if test := asked.get(str(mutant)):
        yield test
        return
    took_s = 0.0
    for found in covered.of(mutant):
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
            try:
                work(worker)
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
                _note(f"a worker fails\t{error!r}")
            os._exit(1)
    failures = [os.wait()[1] for _ in range(AT_ONCE)]
    assert not any(failures), failures


def _covered(session: pytest.Session) -> Covered:
    path = Path(os.environ.get("METERKIT_MUTANTS_MAP") or f"{os.environ['METERKIT_MUTANTS_FOUND']}.map")
    if not path.exists():
        modules = sorted({item.path for item in session.items})

        def record(worker: int) -> None:
            mine = set(modules[worker::AT_ONCE])
            part = _recorded(session, [item for item in session.items if item.path in mine])
            Path(f"{path}.{worker}").write_bytes(pickle.dumps(part))

        _in_workers(record)
        found = Covered()
        for worker in range(AT_ONCE):
            found.add(_read(Path(f"{path}.{worker}")))
        path.write_bytes(pickle.dumps(found))
    return _read(path)


def _read(path: Path) -> Covered:
    found: Covered = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    return found


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
    def __init__(self, session: pytest.Session, took_s: Mapping[str, float]) -> None:
        self._session, self._took_s = session, took_s
        # Tests that noticed a mutant of a function are likely to notice the next one there.
        self._noticed: defaultdict[str, Counter[str]] = defaultdict(Counter[str])
        self._is_sound: dict[str, bool] = {}

    def try_all(self, tried: Sequence[tuple[Mutant, Sequence[pytest.Item]]]) -> None:
        for mutant, items in tried:
            _note(self._tried(mutant, items) if items else f"not run\t{mutant}")

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
        _limit_cpu()
        tell(f"{ITSELF}\n")
        with suppress(BaseException):
            if mutant is not None and not apply(mutant):
                tell("not applied\n")
                return
            for item in items:
                _limit_cpu()
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(WAIT_S + ceil(4 * self._took_s.get(item.nodeid, 0)))
                tell(f"{item.nodeid}\n")
                if not _passes(self._session, item):
                    tell(f"{FAILS}{item.nodeid}\n")
                    return
            tell("survives\n")


def _limit_cpu() -> None:
    """Let this process use up to :data:`CPU_S` seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(used.ru_utime + used.ru_stime) + CPU_S, most))
