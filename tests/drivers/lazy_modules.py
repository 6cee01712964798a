"""Modules that are loaded at their first use: each worker of a run collects all tests, and few use an SDK."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class LazyModule:
    """Stands for a module, which its first attribute imports."""

    name: str

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks each name of a module what it wraps.
            raise AttributeError(attribute)
        return getattr(import_module(self.name), attribute)
