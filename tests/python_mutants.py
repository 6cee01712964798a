"""A pytest plugin that makes the library wrong on purpose, one expression at a time: a test must notice.

It collects the tests once and forks for each mutant. The child swaps the code of one function in place,
or the value of one constant, and runs the tests that execute it, the fastest first, until one fails.

``METERKIT_MUTANTS`` names a module or folder of ``src/meterkit``. ``METERKIT_MUTANTS_FOUND`` names the file
that gets a line for each mutant. ``METERKIT_MUTANTS_SAMPLE`` has lines of a mutant and the test that notices
it; by default all mutants are tried, with the tests that execute their lines.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import os
import pickle
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pytest

__all__ = ["Mutant", "mutants", "survivors_known"]

SOURCE: Final = Path(__file__).parents[1] / "src" / "meterkit"
AT_ONCE: Final = 2
# By CPU time: how busy the machine is has no part in a verdict.
CPU_S_MAX: Final = 60
TESTS_MAX: Final = 40
"""So many tests, the fastest, are run for a mutant that survives them."""

COMPARED: Final[Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt,),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt,),
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
CALLED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}

_functions: Final = list[FunctionType]()
_caches: Final = list[Any]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One file with one expression wrong.

    Attributes:
        file: below ``src/meterkit``.
        scope: the function, by its qualified name; for a constant its name.
        line: of the expression.
        nth: which expression of the file, in the order of :func:`ast.walk`.
        change: which of the ways to make it wrong.
    """

    file: str
    scope: str
    is_constant: bool
    line: int
    nth: int
    change: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}: {self.scope}: {self.before} -> {self.after}"

    def tree(self) -> ast.Module:
        """The file with it."""
        tree = _parsed(self.file)
        for nth, node in enumerate(ast.walk(tree)):
            if nth == self.nth:
                wrong = list(_wrongs(node))[self.change]
                node.__class__, node.__dict__ = wrong.__class__, wrong.__dict__
                break
        return ast.fix_missing_locations(tree)


def mutants(place: str) -> list[Mutant]:
    """Every mutant of a module or of a folder, those that do what the original does among them."""
    root = SOURCE / place
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [one for path in paths for one in _of_file(path)]


def _of_file(path: Path) -> Iterator[Mutant]:
    file = path.relative_to(SOURCE).as_posix()
    tree = _parsed(file)
    scopes, left_out = dict[ast.AST, tuple[str, bool]](), set[ast.AST]()
    _note_scopes(tree, (), scopes, left_out)
    for nth, node in enumerate(ast.walk(tree)):
        if node in left_out or node not in scopes or not isinstance(node, ast.expr):
            continue
        before = ast.unparse(node)
        for change, wrong in enumerate(_wrongs(node)):
            after = ast.unparse(wrong)
            name, is_constant = scopes[node]
            yield Mutant(
                file=file,
                scope=name,
                is_constant=is_constant,
                line=node.lineno,
                nth=nth,
                change=change,
                before=before,
                after=after,
            )


def _parsed(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text("utf-8"))


def _note_scopes(
    node: ast.AST, names: tuple[str, ...], scopes: dict[ast.AST, tuple[str, bool]], left_out: set[ast.AST]
) -> None:
    """Note of each node in which function or constant it is; leave out what is no code of one."""
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _leave(left_out, [*child.decorator_list, child.args, *([child.returns] if child.returns else [])])
            inner = (*names, child.name, "<locals>")
            for statement in child.body:
                scopes.update(dict.fromkeys(ast.walk(statement), (".".join(inner[:-1]), False)))
        elif isinstance(child, ast.ClassDef):
            inner = (*names, child.name)
        elif isinstance(child, ast.AnnAssign):
            _leave(left_out, [child.annotation])
            if not names and isinstance(child.target, ast.Name) and child.value is not None:
                scopes.update(dict.fromkeys(ast.walk(child.value), (child.target.id, True)))
        elif isinstance(child, ast.Raise) and child.exc is not None:
            # Words of errors have tests of their own; whether one is raised is the condition's.
            _leave(left_out, [child.exc])
        _note_scopes(child, inner, scopes, left_out)


def _leave(left_out: set[ast.AST], nodes: Iterable[ast.AST]) -> None:
    for node in nodes:
        left_out.update(ast.walk(node))


def _wrongs(node: ast.AST) -> Iterator[ast.expr]:
    """An expression made wrong, in each way."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARED[type(operator)]:
                wrong = copy.copy(node)
                wrong.ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
                yield wrong
    elif isinstance(node, ast.BoolOp):
        joined = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield ast.copy_location(ast.BoolOp(op=joined, values=node.values), node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        computed = COMPUTED[type(node.op)]()
        yield ast.copy_location(ast.BinOp(left=node.left, op=computed, right=node.right), node)
    elif isinstance(node, ast.IfExp):
        yield ast.copy_location(ast.IfExp(test=node.test, body=node.orelse, orelse=node.body), node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED:
        named = ast.copy_location(ast.Name(id=CALLED[node.func.id], ctx=ast.Load()), node.func)
        yield ast.copy_location(ast.Call(func=named, args=node.args, keywords=node.keywords), node)
    elif isinstance(node, ast.Constant):
        values: tuple[int, ...] = ()
        if isinstance(node.value, bool):
            values = (not node.value,)
        elif isinstance(node.value, int):
            values = (node.value + 1, node.value - 1)
        for value in values:
            yield ast.copy_location(ast.Constant(value=value), node)


def apply(mutant: Mutant) -> bool:
    """Make this process wrong; whether it could."""
    path = str(SOURCE / mutant.file)
    code = compile(mutant.tree(), path, "exec", dont_inherit=True)
    if mutant.is_constant:
        return _apply_constant(mutant, path, code)
    wrong = {(each.co_qualname, each.co_firstlineno): each for each in _codes(code)}
    is_done = False
    for found in _functions:
        if found.__code__.co_filename == path:
            known = found.__code__
            other = wrong.get((known.co_qualname, known.co_firstlineno))
            if other is not None and other != known:
                found.__code__ = other
                is_done = True
    _forget_caches()
    return is_done


def _apply_constant(mutant: Mutant, path: str, code: CodeType) -> bool:
    """Give a constant another value, in each module that has it."""
    own = next(module for module in list(sys.modules.values()) if getattr(module, "__file__", None) == path)
    known = getattr(own, mutant.scope)
    scope: dict[str, Any] = {"__name__": own.__name__, "__file__": path, "__package__": own.__package__}
    exec(code, scope)  # noqa: S102 - the module itself, with one value changed
    for name, module in list(sys.modules.items()):
        if name.startswith("meterkit") and getattr(module, mutant.scope, None) is known:
            setattr(module, mutant.scope, scope[mutant.scope])
    _forget_caches()
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _forget_caches() -> None:
    """Forget what functions of the library have remembered."""
    for found in _caches:
        found.cache_clear()


def _look() -> None:
    """Find all functions and caches of the library, before the collector of garbage is told to leave them."""
    kind = type(functools.cache(_codes))
    for found in gc.get_objects():
        if type(found) is FunctionType and found.__code__.co_filename.startswith(str(SOURCE)):
            _functions.append(found)
        elif type(found) is kind and found.__module__.startswith("meterkit"):
            _caches.append(found)


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run the tests for each mutant, in place of once."""
    every = mutants(os.environ["METERKIT_MUTANTS"])
    gc.collect()
    _look()
    gc.freeze()
    sample = os.environ.get("METERKIT_MUTANTS_SAMPLE", "")
    if sample:
        noticed = dict(line.split("\t") for line in sample.splitlines())
        items = {item.nodeid: item for item in session.items}
        tried = [(one, [items[noticed[str(one)]]]) for one in every if str(one) in noticed]
    else:
        known, covering = survivors_known(), _covering(session)
        tried = [
            (one, [session.items[nth] for nth in _nths(one, covering)[:TESTS_MAX]])
            for one in every
            if str(one) not in known
        ]
    _try(session, tried)
    _note(f"{len(tried)} mutants")
    return True


def _nths(mutant: Mutant, covering: Mapping[tuple[str, int], Sequence[int]]) -> Sequence[int]:
    """The tests that execute a mutant's line, or of a constant any line of its file; the fastest first."""
    if not mutant.is_constant:
        return covering.get((mutant.file, mutant.line), ())
    of_file = (nths for (file, _), nths in covering.items() if file == mutant.file)
    return list(dict.fromkeys(nth for nths in of_file for nth in nths))


def _note(line: str) -> None:
    """Add a line to what is found; processes do so at once."""
    with Path(os.environ["METERKIT_MUTANTS_FOUND"]).open("a", encoding="utf-8") as found:
        found.write(f"{line}\n")


def survivors_known() -> dict[str, str]:
    """Mutants that no test notices, each with the reason that stands above it in the file."""
    found, reason = dict[str, str](), ""
    for line in Path(__file__).with_name("python_survivors.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


def _covering(session: pytest.Session) -> Mapping[tuple[str, int], Sequence[int]]:
    """By file and line the tests that execute it, the fastest first; all tests must pass."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(_recorded(session), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found: dict[tuple[str, int], Sequence[int]] | None = pickle.load(pipe)  # noqa: S301 - our own child's
    os.waitpid(child, 0)
    assert found is not None, "a test fails without a mutant"
    return found


def _recorded(session: pytest.Session) -> dict[tuple[str, int], list[int]] | None:
    """What :func:`_covering` returns; None where a test fails."""
    root = SOURCE / os.environ["METERKIT_MUTANTS"]
    include = [str(root) if root.is_file() else f"{root}/*"]
    measured = coverage.Coverage(data_file=None, config_file=False, include=include)
    took = list[float]()
    measured.start()
    for nth, item in enumerate(session.items):
        measured.switch_context(f"{nth}")
        began = process_time()
        if not _passes(session, item, session.items[nth + 1] if nth + 1 < len(session.items) else None):
            return None
        took.append(process_time() - began)
    measured.stop()
    data, found = measured.get_data(), dict[tuple[str, int], list[int]]()
    for path in data.measured_files():
        file = Path(path).relative_to(SOURCE).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            found[file, line] = sorted((int(nth) for nth in contexts if nth), key=took.__getitem__)
    return found


def _passes(session: pytest.Session, item: pytest.Item, following: pytest.Item | None) -> bool:
    before = session.testsfailed
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return session.testsfailed == before


def _try(session: pytest.Session, tried: Sequence[tuple[Mutant, Sequence[pytest.Item]]]) -> None:
    """Run tests for each mutant, in processes of their own, and note what becomes of it."""
    running = dict[int, Mutant]()
    for mutant, items in tried:
        if not items:
            _note(f"not run\t{mutant}")
            continue
        if len(running) >= AT_ONCE:
            _await_one(running)
        process = os.fork()
        if not process:
            os._exit(_verdict(session, mutant, items))
        running[process] = mutant
    while running:
        _await_one(running)


def _await_one(running: dict[int, Mutant]) -> None:
    process, status = os.wait()
    mutant = running.pop(process)
    if os.waitstatus_to_exitcode(status) < 0:
        _note(f"noticed\t{mutant}\tit does not end")


def _verdict(session: pytest.Session, mutant: Mutant, items: Sequence[pytest.Item]) -> int:
    """Note which test fails, if one does."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    current = items[0].nodeid
    try:
        apply(mutant)
        for nth, item in enumerate(items):
            current = item.nodeid
            if not _passes(session, item, items[nth + 1] if nth + 1 < len(items) else None):
                _note(f"noticed\t{mutant}\t{current}")
                return 0
    except BaseException:  # noqa: BLE001 - whatever it is, it is noticed
        _note(f"noticed\t{mutant}\t{current}")
        return 0
    _note(f"survives\t{mutant}")
    return 0
