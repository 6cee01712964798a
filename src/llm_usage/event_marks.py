"""Marks in the bytes of an event before it is parsed, and token figures that no API reads, by their names."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final, cast

from llm_usage.call_usage import figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_usage.framing.incremental import LargeReader, Work
    from llm_usage.json_values import Table

# A quotation mark within a JSON text is escaped, so that what a model says cannot look like these.
_ANSWERS: Final = (b'"choices"', b'"candidates"', b'"content"', b'"output"', b'"message"', b'"response"')
_COUNT: Final = b'ount"'  # promptTokenCount, prompt_token_count, eval_count
_BILLED: Final = b'"billed_units"'
_PAGES: Final = b'"usage_info"'
_SEARCHES: Final = b'ueries"'  # webSearchQueries, web_search_queries
_USAGE: Final = b'"usage"'
# OpenAI's chunks say `"usage": null` all along.
_USAGE_OBJECT: Final = re.compile(rb'"usage"\s*:\s*\{')


def may_answer(data: bytes) -> bool:
    """Whether JSON may hold usage figures, or be an answer that lacks them."""
    figures = (_USAGE, _COUNT, _BILLED, _PAGES)
    return any(needle in data for needle in (*figures, *_ANSWERS)) or may_have_figures(data)


def may_report(data: bytes) -> bool:
    """Whether an event, or one among several, may hold usage figures, an error or the end of a stream."""
    return (
        _COUNT in data
        or _SEARCHES in data
        or b'"error"' in data
        or b"[DONE]" in data
        or _BILLED in data
        or _PAGES in data
        or (_USAGE in data and _USAGE_OBJECT.search(data) is not None)
    )


def may_have_usage(data: bytes) -> bool:
    """Whether JSON may hold usage, or a token figure above 0."""
    return (
        may_have_figures(data)
        or _BILLED in data
        or _PAGES in data
        or (_USAGE in data and _USAGE_OBJECT.search(data) is not None)
    )


_TOKEN: Final = b"oken"
_TOKEN_NAME: Final = _TOKEN.decode()
# A quotation mark within a JSON text is escaped, so that what a model says cannot look like this.
_FIGURE: Final = re.compile(rb'oken[A-Za-z_]{0,40}"\s*:\s*[1-9]')
_FIGURE_BYTES_MAX: Final = 128
# The most names that are checked in each piece of a large event.
_FIGURES_MAX: Final = 16
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_LIMITS: Final = frozenset(
    {"max", "maximum", "min", "minimum", "limit", "limits", "remaining", "left", "available"}
)
_SETTINGS: Final = frozenset(
    {"allowed", "budget", "quota", "reserved", "window", "context", "default", "defaults"}
)
_PRICES: Final = frozenset({"rate", "rates", "per", "price", "prices", "pricing", "cost", "costs"})
_CREDENTIALS: Final = frozenset({"access", "refresh", "auth", "api", "device", "session"})
# A name with one of these words is no usage.
_OTHERS: Final = _LIMITS | _SETTINGS | _PRICES | _CREDENTIALS
# Nor are the members of these.
_OTHER_PARENTS: Final = _OTHERS | {"config", "parameters", "params", "options", "settings", "capabilities"}
_USED: Final = frozenset({"usage", "meta", "metadata"})
_SHOWN: Final = re.compile(r"[A-Za-z_-]{1,40}")
_ITEM: Final = "[]"
_COUNTING: Final = re.compile(
    r"(?:count|compute)[-_]?tokens|token[-_]?count|tokeni[sz]e|input_tokens$", re.IGNORECASE
)


def may_have_figures(data: bytes) -> bool:
    """Whether JSON may hold a token figure."""
    return _TOKEN in data and _FIGURE.search(data) is not None


def figure_path(event: Table) -> str | None:
    """The path of the first token figure above 0 that is no limit; names that may be data are hidden."""
    # It grows by one level of members after the other.
    places: list[tuple[Table, tuple[str, ...]]] = [(event, ())]
    for value, path in places:
        for name, inner in value.items():
            if isinstance(inner, dict | list):
                if _OTHER_PARENTS.isdisjoint(_words(name)):
                    places += _objects(cast("object", inner), (*path, name))
            elif _TOKEN_NAME in name and figure(inner) and _is_figure(name, path):
                return ".".join(map(_display_name, (*path, name))).replace(f".{_ITEM}", _ITEM)
    return None


def is_counting(path: str) -> bool:
    """Whether a request's path is that of an endpoint which counts tokens and uses none."""
    return _COUNTING.search(path.rpartition("/")[2]) is not None


class FigureWatch:
    """Looks for token figures in an event that is too large to be kept, as it passes to its reader.

    Args:
        reader: reads the event.
        note: takes the name of a figure.
    """

    __slots__ = ("_note", "_reader", "_tail")

    def __init__(self, reader: LargeReader, note: Callable[[str], None]) -> None:
        self._reader = reader
        self._note = note
        self._tail = b""

    def feed(self, data: bytes) -> Work | None:
        """Take the next bytes of it."""
        seen = self._tail + data
        self._tail = seen[-_FIGURE_BYTES_MAX:]
        if _TOKEN in seen:
            for found in islice(_FIGURE.finditer(seen), _FIGURES_MAX):
                begin, end = seen.rfind(b'"', 0, found.start()) + 1, seen.find(b'"', found.start())
                name = seen[begin:end].decode("utf-8", "replace")
                if begin and _is_figure(name, ()):
                    self._note(_display_name(name))
        return self._reader.feed(data)

    def end(self) -> None:
        """It has come to its end."""
        self._reader.end()


def _objects(value: object, path: tuple[str, ...]) -> list[tuple[Table, tuple[str, ...]]]:
    """The object, or those that are the items of an array."""
    items = cast("list[object]", value) if isinstance(value, list) else None
    if items is None:
        return [(cast("Table", value), path)]
    # Items are alike: an array of numbers, such as an embedding, is not gone through.
    if not items or not isinstance(items[0], dict):
        return []
    return [(cast("Table", item), (*path, _ITEM)) for item in items if isinstance(item, dict)]


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _is_figure(name: str, path: tuple[str, ...]) -> bool:
    words = _words(name)
    if not _OTHERS.isdisjoint(words):
        return False
    if words == ["tokens"]:
        return any(not _USED.isdisjoint(_words(parent)) for parent in path)
    return "tokens" in words or ("token", "count") in pairwise(words)


def _display_name(name: str) -> str:
    """The name, or `*` if it may be data, such as an id."""
    return name if name == _ITEM or _SHOWN.fullmatch(name) else "*"
