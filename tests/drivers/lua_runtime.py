"""Lua for fakeredis that compiles each script once: most of the time of ``memory://`` goes into compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import fakeredis

_COLLECT_EVERY: Final = 500


class _CompiledScripts:
    """A Lua runtime that compiles each script once, and collects garbage after 500 scripts."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._compiled: dict[bytes, Callable[[], Any]] = {}
        self._uses = 0
        # fakeredis asks for these for each value of a call; __getattr__ is slow.
        self.table_from, self.globals = runtime.table_from, runtime.globals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def execute(self, script: bytes | str) -> Any:
        if isinstance(script, str):  # fakeredis collects garbage after each script.
            self._uses += 1
            return None if self._uses % _COLLECT_EVERY else self._runtime.execute(script)
        compiled = self._compiled.get(script)
        if compiled is None:
            compiled = self._compiled[script] = self._runtime.compile(script)
        return compiled()


def compile_once(server: Any) -> None:
    """Have a server of fakeredis compile each script once. Releases without this attribute stay slow."""
    client: Any = fakeredis.FakeRedis(server=server, version=(7, 0))
    client.eval("return 1", 0)  # Creates the runtime.
    client.close()
    runtime = getattr(server, "_lua_runtime", None)
    if runtime is not None and not isinstance(runtime, _CompiledScripts):
        server._lua_runtime = _CompiledScripts(runtime)
