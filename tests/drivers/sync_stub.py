"""Writes ``sync.pyi``: signatures of the blocking kit, copied from the coroutine methods of the kit."""

# Internals: the source of the kit's parts.

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, get_overloads

import meterkit
from meterkit import CustomerSubject, MeterKit
from meterkit.catalog import loads

STUB: Final = Path(meterkit.__file__).with_name("sync.pyi")
_HEAD: Final = "# Written by `python tests/drivers/sync_stub.py` from the methods of the kit.\n"
_PLANS: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""
_RECORD: Final = "_Record"
"""The type variable of `CustomerSubject`, which is a `Customer` for the kit."""


def stub() -> str:
    """The text of the stub; not formatted."""
    kit = MeterKit(loads(_PLANS), redis_url="memory://", flush=False)
    twin: Any = kit.sync()
    parts = {type(part).__name__: part for part in _parts_of(twin)}
    reserved = twin.reserve("a", {"requests": 1})
    parts |= {"SyncReservation": reserved, "SyncSubject": None}
    imports: set[tuple[str, str]] = set()
    classes = [
        _class(node, parts[node.name], imports)
        for node in ast.parse(inspect.getsource(sys.modules["meterkit.sync"])).body
        if isinstance(node, ast.ClassDef) and node.name in parts
    ]
    lines = [f"from {home} import {name}" for home, name in sorted(imports) if home != "meterkit.sync"]
    return _HEAD + "\n".join([*lines, *classes])


def _parts_of(twin: Any) -> Iterator[Any]:
    yield twin
    for name in twin._parts:
        yield from _parts_of(getattr(twin, name))


def _class(node: ast.ClassDef, twin: Any, imports: set[tuple[str, str]]) -> str:
    """The class of a part: the methods that it defines, and those of the kit's part without ``async``."""
    kind = vars(sys.modules["meterkit.sync"])[node.name]
    part = CustomerSubject if twin is None else twin._part
    lines = [f"class {node.name}:"]
    lines += [f"    {name}: {type(getattr(twin, name)).__name__}" for name in kind._parts]
    for name in kind._shared:
        if inspect.ismethod(getattr(part, name)):
            lines += _signatures(getattr(part, name), imports, name)
        else:
            found = getattr(part, name).__class__
            imports.add((found.__module__, found.__name__))
            lines.append(f"    {name}: {found.__name__}")
    for method in node.body:
        if isinstance(method, ast.FunctionDef):
            if method.name == "__init__":
                imports.add(("meterkit.kit", "MeterKit"))
                method.args.args[1].annotation = ast.Name("MeterKit")
            lines += _signature(method, "meterkit.sync", imports)
    for name in kind._methods:
        lines += _signatures(getattr(part, name), imports, name)
    return "\n".join(lines)


def _signatures(method: Any, imports: set[tuple[str, str]], name: str) -> list[str]:
    """The signatures of a method: one, or its overloads."""
    function = inspect.unwrap(getattr(method, "__func__", method))
    if not inspect.isfunction(function):  # An object that is called.
        function = type(function).__call__
    found: list[str] = []
    for each in get_overloads(function) or [function]:
        node = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if function.__name__ == "__call__":
            node.name = name
        found += _signature(node, function.__module__, imports)
    return found


def _signature(
    node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, imports: set[tuple[str, str]]
) -> list[str]:
    known = _origins(module)
    for nth, default in enumerate(node.args.kw_defaults):
        if isinstance(default, ast.Name):  # A constant of the module.
            node.args.kw_defaults[nth] = ast.Constant(vars(sys.modules[module])[default.id])
    node.body = [ast.Expr(ast.Constant(...))]
    text = ast.unparse(node).replace("async def ", "def ")
    text = text.replace(_RECORD, "Customer")
    for name in {each.id for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Name)} & known.keys():
        imports.add((known[name], name))
    return [f"    {line}" for line in text.splitlines()]


@cache
def _origins(module: str) -> dict[str, str]:
    """Names that a module imports or defines, with their homes."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found = {each.name: module for each in tree.body if isinstance(each, ast.ClassDef)}
    for each in ast.walk(tree):
        if isinstance(each, ast.ImportFrom) and each.module not in {None, "__future__"}:
            found |= {alias.asname or alias.name: str(each.module) for alias in each.names}
    return found | {"Customer": "meterkit.customers.customers"}


def write() -> None:
    STUB.write_text(stub())
    for command in (["check", "--fix", "--quiet", "--select", "I,F401"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(STUB)], check=True)


if __name__ == "__main__":
    write()
