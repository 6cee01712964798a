"""What is said, once in a while, of token usage that could not be counted."""

from __future__ import annotations

import logging
from time import monotonic
from traceback import format_tb
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from meterkit.store.store import Store
    from meterkit.tokens import CallUsage, Note

__all__ = ["Contained", "described", "lost", "remark"]

_logger = logging.getLogger("meterkit.asgi")

_EVERY_S: Final = 60.0
_CAUSES: Final[Mapping[Note, str]] = {
    "encoding": (
        "its content coding is not decoded here: compress outside of MeterMiddleware, or install what "
        "undoes it (brotli, zstandard)"
    ),
    "too_large": "it is larger than what is read of a response",
    "corrupt": "it is damaged, or compressed in another way than it says",
    "refused": "a figure in it is no integer from 0 to 10^15 - 1",
    "unreadable": "it is no JSON where there should be some",
    "too_many_calls": "it holds more calls than are told apart",
    "not_asked": (
        "it ended without usage figures: a stream of OpenAI's Chat Completions, or of a server that speaks "
        'like it, has them only if it was asked for with stream_options={"include_usage": true}'
    ),
}
_NO_USAGE: Final = "it ended without usage figures"
# These mean that something was not counted although other figures of the call were.
_IN_PART: Final[tuple[Note, ...]] = ("refused", "too_many_calls")
_said: Final[WeakKeyDictionary[Store, dict[tuple[str, str], float]]] = WeakKeyDictionary()


class Contained:
    """``with`` it runs what must not be heard of by the app, whatever it raises; may be entered again.

    Args:
        tell: takes which error it was; see :func:`described`.
    """

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or not isinstance(error, Exception):
            return False
        self._tell(described(error))
        return True


def described(error: Exception) -> str:
    """Which error it is, and where: not its own words, which may hold what a customer wrote."""
    return f"{type(error).__name__} at\n{''.join(format_tb(error.__traceback__))}"


def lost(store: Store, route: str, calls: Iterable[CallUsage]) -> None:
    """Say of which calls figures are missing or estimated, and why that may be."""
    for call in calls:
        if "ended_early" in call.notes:
            continue  # Whoever broke it off knows why.
        cause = next((_CAUSES[note] for note in _CAUSES if note in call.notes), _NO_USAGE)
        if call.source == "missing":
            remark(store, route, f"token usage of a response is missing, and counts nothing: {cause}")
        elif call.source == "estimated":
            remark(store, route, f"token usage of a response is estimated: {cause}")
        else:
            for note in _IN_PART:
                if note in call.notes:
                    remark(store, route, f"token usage of a response was read in part: {_CAUSES[note]}")


def remark(store: Store, route: str, message: str) -> None:
    """Warn of a route; of the same once a minute."""
    said = _said.setdefault(store, {})
    now = monotonic()
    if now - said.get((route, message), -_EVERY_S) >= _EVERY_S:
        said[route, message] = now
        _logger.warning("%s: %s", route, message)
