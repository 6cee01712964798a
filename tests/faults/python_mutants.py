"""Python mutants: the library made wrong on purpose, in one place at a time, and swapped in while it runs.

Left alone are the words of errors, log calls, default values of arguments and class bodies.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
CALLED: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
LARGE: Final = 10
"""From there on a constant is doubled: a limit, a span or a size that is one higher shows in nothing."""

_functions: Final = list[FunctionType]()
_caches: Final = list[Any]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One file with one place wrong.

    Attributes:
        file: below ``src/meterkit``.
        scope: the function, by its qualified name; for a constant its name.
        lines: of the expression and of its statement: tests that run either may notice.
        nth: which node of the file, in the order of :func:`ast.walk`.
        change: which of the ways to make it wrong.
        repeat: which of those alike in its scope, from 1.
    """

    file: str
    scope: str
    is_constant: bool
    lines: tuple[int, int]
    nth: int
    change: int
    before: str
    after: str
    repeat: int

    def __str__(self) -> str:
        name = f"{self.file}: {self.scope}: {self.before} -> {self.after}"
        return name if self.repeat == 1 else f"{name} #{self.repeat}"

    def tree(self) -> ast.Module:
        """The file with it."""
        tree = _parsed(self.file)
        for nth, node in enumerate(ast.walk(tree)):
            if nth == self.nth:
                wrong = list(_wrongs(node))[self.change]
                node.__class__, node.__dict__ = wrong.__class__, wrong.__dict__
                break
        return ast.fix_missing_locations(tree)


@dataclass(frozen=True, slots=True)
class _Scope:
    name: str
    is_constant: bool
    line: int


def mutants(place: str) -> list[Mutant]:
    """Every mutant of a module or of a folder, those that do what the original does among them."""
    root = SOURCE / place
    paths = [root] if root.is_file() else sorted(root.rglob("*.py"))
    return [one for path in paths for one in _of_file(path)]


def survivors_known() -> dict[str, str]:
    """Mutants that no test notices, each with the reason that stands above it in the file."""
    found, reason = dict[str, str](), ""
    for line in Path(__file__).with_name("python_survivors.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            reason = line.removeprefix("# ")
        elif line:
            found[line] = reason
    return found


def _of_file(path: Path) -> Iterator[Mutant]:
    file = path.relative_to(SOURCE).as_posix()
    tree = _parsed(file)
    scopes, left_out = dict[ast.AST, _Scope](), set[ast.AST]()
    _note_scopes(tree, (), scopes, left_out)
    alike = Counter[tuple[str, str, str]]()
    for nth, node in enumerate(ast.walk(tree)):
        scope = scopes.get(node)
        if scope is None or node in left_out or not isinstance(node, ast.expr | ast.stmt):
            continue
        for change, wrong in enumerate(_wrongs(node)):
            before, after = _shown(node), _shown(wrong)
            alike[scope.name, before, after] += 1
            yield Mutant(
                file=file,
                scope=scope.name,
                is_constant=scope.is_constant,
                lines=(node.lineno, scope.line),
                nth=nth,
                change=change,
                before=before,
                after=after,
                repeat=alike[scope.name, before, after],
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
        inner = names
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            _leave(left_out, [*child.decorator_list, child.args, *([child.returns] if child.returns else [])])
            inner = (*names, child.name, "<locals>")
            for statement in child.body:
                _note_statement(statement, ".".join(inner[:-1]), scopes)
        elif isinstance(child, ast.ClassDef):
            inner = (*names, child.name)
        elif isinstance(child, ast.AnnAssign):
            _leave(left_out, [child.annotation])
            if not names and isinstance(child.target, ast.Name) and child.value is not None:
                scope = _Scope(child.target.id, is_constant=True, line=child.lineno)
                scopes.update(dict.fromkeys(ast.walk(child.value), scope))
        elif isinstance(child, ast.Raise) and child.exc is not None:
            # Words of errors have tests of their own; whether one is raised is the condition's.
            _leave(left_out, [child.exc])
        elif isinstance(child, ast.Expr) and _is_log(child):
            _leave(left_out, [child])
        _note_scopes(child, inner, scopes, left_out)


def _note_statement(statement: ast.stmt, name: str, scopes: dict[ast.AST, _Scope]) -> None:
    scope = _Scope(name, is_constant=False, line=statement.lineno)
    for node in ast.walk(statement):
        scopes[node] = scope
    for node in ast.walk(statement):
        if isinstance(node, ast.stmt) and node is not statement:
            inner = _Scope(name, is_constant=False, line=node.lineno)
            scopes.update(dict.fromkeys(ast.walk(node), inner))


def _is_log(node: ast.Expr) -> bool:
    called = node.value.value if isinstance(node.value, ast.Await) else node.value
    return (
        isinstance(called, ast.Call)
        and isinstance(called.func, ast.Attribute)
        and called.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}
    )


def _leave(left_out: set[ast.AST], nodes: Iterable[ast.AST]) -> None:
    for node in nodes:
        left_out.update(ast.walk(node))


def _wrongs(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """An expression or a statement made wrong, in each way."""
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
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        changed = copy.copy(node)
        changed.op = COMPUTED[type(node.op)]()
        yield changed
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not _is_tried_itself(node.test):
        negated = copy.copy(node)
        negated.test = ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=node.test), node.test)
        yield negated
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED:
        named = ast.copy_location(ast.Name(id=CALLED[node.func.id], ctx=ast.Load()), node.func)
        yield ast.copy_location(ast.Call(func=named, args=node.args, keywords=node.keywords), node)
    elif isinstance(node, ast.Constant):
        for value in _others(node.value):
            yield ast.copy_location(ast.Constant(value=value), node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield ast.copy_location(ast.Pass(), node)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_wrong_otherwise(node.value):
        yield ast.copy_location(ast.Return(value=ast.copy_location(ast.Constant(value=None), node)), node)


def _is_tried_itself(test: ast.expr) -> bool:
    return isinstance(test, ast.Compare | ast.BoolOp) or (
        isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    )


def _is_wrong_otherwise(value: ast.expr) -> bool:
    return _is_tried_itself(value) or isinstance(value, ast.Constant | ast.BinOp | ast.IfExp)


def _others(value: object) -> tuple[int, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1 if value < LARGE else value * 2,)
    return ()


def look() -> None:
    """Find all functions and caches of the library."""
    kind = type(functools.cache(_codes))
    for found in gc.get_objects():
        if type(found) is FunctionType and found.__code__.co_filename.startswith(str(SOURCE)):
            _functions.append(found)
        elif type(found) is kind and found.__module__.startswith("meterkit"):
            _caches.append(found)


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
