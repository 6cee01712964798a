"""What an error of a server is about: one key, or the server itself."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Final

__all__ = ["is_of_a_key", "is_refusal"]

_NAMES: Final = (
    *("NoScriptError", "ReadOnlyError", "OutOfMemoryError", "NoPermissionError"),
    *("ClusterDownError", "AskError", "TryAgainError"),
)
# Redis-py has no classes of these.
_CODES: Final = ("MISCONF ", "NOREPLICAS ", "BUSY ")


def is_refusal(error: object) -> bool:
    """Whether a server has answered with an error."""
    return isinstance(error, _classes()[0])


def is_of_a_key(error: object) -> bool:
    """Whether a server has answered that a key does not hold what the command needs."""
    refusal, of_the_server = _classes()
    return isinstance(error, refusal) and not (
        isinstance(error, of_the_server) or str(error).startswith(_CODES)
    )


@cache
def _classes() -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """Redis-py's class of answers with an error, and those by which a server speaks of itself.

    Their messages lack the code. Redis-py takes a while to import: it comes with the first kit.
    """
    errors: Any = import_module("redis.exceptions")
    return errors.ResponseError, tuple(getattr(errors, name) for name in _NAMES)
