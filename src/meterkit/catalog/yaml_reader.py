"""Reads YAML into a tree.

Size, depth and what aliases expand to are bounded, tags are refused, and no input raises anything but a
PlansError.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

import yaml

from meterkit.catalog.errors import FilePlace, Problems, quoted
from meterkit.catalog.yaml_tree import DEPTH_MAX, SIZE_MAX, Fields, Items, Node, Text, kind_of
from meterkit.errors import PlansError

if TYPE_CHECKING:
    from collections.abc import Iterator

ALIASED_MAX: Final = 10_000

_FORBIDDEN: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]",
)
_LINE_BREAK: Final = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_GLUED_KEY: Final = re.compile(r" *(?P<key>[A-Za-z][A-Za-z0-9_.-]{0,63}):(?P<value>[^\s:]{1,64}) *")
_STARRED: Final = re.compile(r"\*[^\s,\]}]*")
# Escapes and numbers that mean nothing reach PyYAML's own calls of chr() and int().
_YAML_ERRORS: Final = (yaml.YAMLError, ValueError, OverflowError)
_QUOTE_HINT: Final = "a text that holds : # , { } [ ] or starts with * & ! % @ ` must be quoted"


def parse(data: str | bytes, *, problems: Problems) -> Fields:
    """Read one document whose root is a map.

    Duplicate keys are noted in ``problems`` and reading goes on with the first of them.

    Raises:
        PlansError: the data is no such document; with everything noted until there.
    """
    root = _parse_text(_decode(data, problems), problems)
    if not isinstance(root, Fields):
        problems.stop(
            root.place, f"found {kind_of(root)}; a plans file is a map that starts with `schema: 1`"
        )
    return root


def _decode(data: str | bytes, problems: Problems) -> str:
    if len(data) > SIZE_MAX:
        problems.stop(FilePlace(1, 1, ""), f"the file has {len(data):,} bytes; allowed: at most {SIZE_MAX:,}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place_at(error.object[: error.start].decode("utf-8"))
        problems.stop(place, f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8")
    text = text.removeprefix("\ufeff")
    if found := _FORBIDDEN.search(text):
        code, place = f"U+{ord(found.group()):04X}", _place_at(text[: found.start()])
        problems.stop(place, f"found the character {code}, which YAML forbids; remove it")
    return text


def _place_at(before: str) -> FilePlace:
    breaks = list(_LINE_BREAK.finditer(before))
    return FilePlace(len(breaks) + 1, len(before) - (breaks[-1].end() if breaks else 0) + 1, "")


def _parse_text(text: str, problems: Problems) -> Node:
    # libyaml is twenty times faster but words its errors differently and is not everywhere:
    # what it refuses is read again by the Python parser, whose verdict and words count.
    fast: Any = getattr(yaml, "CSafeLoader", None)
    if fast is not None:
        trial = Problems(problems.source)
        with suppress(PlansError, *_YAML_ERRORS):
            root = _TreeBuilder(fast(text), trial).document()
            problems.extend(trial)
            return root
    parser: Any = yaml.SafeLoader(text)
    try:
        return _TreeBuilder(parser, problems).document()
    except yaml.MarkedYAMLError as error:
        _refuse_syntax(error, text, problems)
    except _YAML_ERRORS:
        place = FilePlace(parser.line + 1, parser.column + 1, "")
        problems.stop(place, f"not readable as YAML: an invalid escape or number; {_QUOTE_HINT}")


def _refuse_syntax(error: yaml.MarkedYAMLError, text: str, problems: Problems) -> NoReturn:
    problem, context = error.problem or "unreadable", error.context_mark
    mark = error.problem_mark or context
    begun = context.line + 1 if context else 1
    if error.context == "while scanning an alias" and context is not None:
        mark = context
        starred = _STARRED.match(text, mark.index)
        message = _alias_message(starred.group() if starred else "*")
    elif "'\\t'" in problem:
        message = "found a tab where YAML wants spaces; indent with spaces"
    elif problem.startswith("mapping values are not allowed"):
        message = "found a second `: ` in one line; quote the text that holds it, or begin a new line"
        if mark is not None and (glued := _find_glued_key(text, mark.line)) is not None:
            problems.stop(*glued)
    elif "found unexpected end of stream" in problem:
        mark = context or mark
        message = "the quote that opens here is never closed"
    elif "<block end>" in problem:
        message = f"this does not fit what begins in line {begun}; correct the indentation, or quote the text"
    elif problem.startswith("expected ',' or"):
        message = f"the {{ or [ opened in line {begun} is not closed before this; close it; {_QUOTE_HINT}"
    else:
        opened_at = f" (in what begins in line {begun})" if context else ""
        message = f"not readable as YAML: {problem}{opened_at}; {_QUOTE_HINT}"
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problems.stop(FilePlace(line, column, ""), message)


def _find_glued_key(text: str, line: int) -> tuple[FilePlace, str] | None:
    """Find the key without a space after its colon in the line before, which YAML reads as a text."""
    before = _LINE_BREAK.split(text)[line - 1] if line else ""
    glued = _GLUED_KEY.fullmatch(before)
    if glued is None:
        return None
    place = FilePlace(line, glued.start("value") + 1, "")
    return place, f"found no space after the colon; write `{glued['key']}: {glued['value']}`"


def _alias_message(starred: str) -> str:
    return (
        f'YAML reads {starred} as an alias, and no anchor has that name; for the text, quote it: "{starred}"'
    )


class _TreeBuilder:
    """Builds the tree of one document from YAML's events."""

    def __init__(self, parser: Any, problems: Problems) -> None:
        self._events: Iterator[yaml.Event] = iter(parser.get_event, None)
        self._problems = problems
        self._anchors: dict[str, Node] = {}
        self._aliased = 0

    def document(self) -> Node:
        """The root of the only document."""
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            self._problems.stop(
                FilePlace(1, 1, ""), "the file is empty; a plans file starts with `schema: 1`"
            )
        root = self._build_node(next(self._events), FilePlace(1, 1, ""), 1)
        next(self._events)
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            at = FilePlace(*_position(after), "")
            self._problems.stop(at, "found a second document; a plans file is one: remove the `---`")
        return root

    def _build_node(self, event: Any, place: FilePlace, depth: int) -> Node:
        if depth > DEPTH_MAX:
            self._problems.stop(place, f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._resolve_alias(event, place, depth)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._problems.refuse(
                place, f"found the tag {quoted(tag)}; tags are not read: remove it", settles=True
            )
        if isinstance(event, yaml.ScalarEvent):
            node: Node = Text(place, event.value, bool(event.style))
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._build_items(place, depth)
        else:
            node = self._build_fields(place, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _resolve_alias(self, event: yaml.AliasEvent, place: FilePlace, depth: int) -> Node:
        node = self._anchors.get(event.anchor or "")
        if node is None:
            self._problems.refuse(place, _alias_message(f"*{event.anchor}"), settles=True)
            return Text(place, f"*{event.anchor}", quoted=True)
        size, height = _measure(node)
        self._aliased += size
        if self._aliased > ALIASED_MAX:
            self._problems.stop(
                place, f"the aliases of this file stand for more than {ALIASED_MAX:,} values; write fewer"
            )
        if depth + height - 1 > DEPTH_MAX:
            self._problems.stop(
                place, f"nested deeper than {DEPTH_MAX} levels through the alias *{event.anchor}"
            )
        return node

    def _build_items(self, place: FilePlace, depth: int) -> Items:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._build_node(event, place.item(len(items), *_position(event)), depth + 1))
        return Items(place, tuple(items))

    def _build_fields(self, place: FilePlace, depth: int) -> Fields:
        values: dict[str, Node] = {}
        places: dict[str, FilePlace] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                found = "an alias" if isinstance(event, yaml.AliasEvent) else "a list or a map"
                at = FilePlace(*_position(event), place.path)
                self._problems.stop(at, f"found {found} as a key; a key is a text")
            key: str = event.value
            at = place.child(key, *_position(event))
            value = self._build_node(next(self._events), at, depth + 1)
            if key in values:
                first = places[key].line
                self._problems.refuse(
                    at, f"duplicate key {quoted(key)}, first written in line {first}; keep one"
                )
            else:
                values[key], places[key] = value, at
        return Fields(place, values, places)


def _position(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _measure(node: Node) -> tuple[int, int]:
    """Number of values in a node, itself included, and of nested levels."""
    if isinstance(node, Text):
        return 1, 1
    inside = node.items if isinstance(node, Items) else node.values.values()
    children = [_measure(child) for child in inside]
    return 1 + sum(size for size, _ in children), 1 + max((height for _, height in children), default=0)
