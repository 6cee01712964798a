"""``match`` lines of routes: methods, path templates, MCP messages; and which line covers another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from meterkit.catalog.errors import RefusedError, nearest, quoted
from meterkit.catalog.model_prices import covers_pattern
from meterkit.catalog.models import NAMED_METHODS, McpMatch
from meterkit.catalog.value_parsers import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable

WEBSOCKET: Final = "WS"
METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", WEBSOCKET,
)  # fmt: skip
CONVERTORS: Final = ("str", "path", "int", "float", "uuid")
PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([A-Za-z_][A-Za-z0-9_]*))?\}")
MCP: Final = "MCP"
ENDPOINT: Final = "/mcp"
"""The path of an MCP endpoint that the line does not name: the default of the SDKs."""
_COLON: Final = re.compile(r"/(:[A-Za-z_][A-Za-z0-9_]*)(?=/|$)")
_ALLOWED: Final = (
    'a path template such as "POST /v1/items/{id}", "/v1/{path:path}", "WS /v1/live",'
    ' "MCP tools/call search*", or "*"'
)
_MCP_ALLOWED: Final = (
    'the method and the name of a tool or prompt, such as "MCP tools/call search*", "MCP tools/call", "MCP *"'
    ' or, with the endpoint\'s path, "MCP /api/mcp tools/call"'
)


def parse_match(match: str) -> tuple[str | None, str | None]:
    """The method and the path template of a ``match`` line; None for any.

    Messages of MCP are posted to the path of their endpoint.

    Raises:
        RefusedError: it is none.
    """
    words = match.split()
    if (mcp := parse_mcp(match)) is not None:
        words = ["POST", mcp[0]]
    if words == ["*"]:
        return None, None
    if len(words) not in {1, 2}:
        raise RefusedError(f"allowed: {_ALLOWED}; one method at most")
    method, path = (None, words[0]) if len(words) == 1 else (words[0], words[1])
    if method is not None and method not in METHODS:
        raise _unknown_method(method, path)
    if path == "*":
        raise RefusedError("`*` takes no method", meant=f'"{method} /{{path:path}}"')
    if method is None and path.upper() in METHODS:
        raise RefusedError("the path is missing", meant=f'"{path.upper()} /{{path:path}}"')
    if not path.startswith("/"):
        raise RefusedError(f"a path starts with /; allowed: {_ALLOWED}")
    _check_template(path)
    return method, path


def _unknown_method(method: str, path: str) -> RefusedError:
    if method.upper() in {"ANY", "ALL", "*"}:
        return RefusedError("to match any method, leave the method out", meant=f'"{path}"')
    known = (*METHODS, MCP)
    near = method.upper() if method.upper() in known else nearest(method, known)
    reason = f"{quoted(method)} is not a method; allowed: {', '.join(METHODS)}"
    return RefusedError(reason, meant=near and f'"{near} {path}"')


def _check_template(path: str) -> None:
    query = path.find("?") if "?" in path else path.find("#")
    if query >= 0:
        raise RefusedError(f"a match is a path only; remove {path[query:]!r}")
    decoded = unquote(path)
    if decoded != path:  # As encoded it would match nothing: routers go by the decoded path.
        meant = f'"{decoded}"' if decoded.isprintable() and " " not in decoded else None
        raise RefusedError("a path is not encoded; a blank is matched by {name}", meant=meant)
    seen: set[str] = set()
    for name, convertor in PARAMETER.findall(path):
        if name in seen:
            raise RefusedError(f"the path has the parameter {name!r} twice; rename one")
        seen.add(name)
        if convertor and convertor not in CONVERTORS:
            near = nearest(convertor, CONVERTORS)
            reason = f"{convertor!r} is not a convertor; allowed: {', '.join(CONVERTORS)}"
            raise RefusedError(reason, meant=near and f"{{{name}:{near}}}")
    rest = PARAMETER.sub("", path)
    if "{" in rest or "}" in rest:
        raise RefusedError("a { or } belongs to no parameter; allowed: {name} or {name:convertor}")
    if "*" in rest or "<" in rest:
        allowed = "allowed: {name} for one segment, {name:path} for the rest"
        raise RefusedError(f"a path has parameters, not wildcards; {allowed}")
    if colon := _COLON.search(path):
        raise RefusedError(f"{colon[1]!r} is not a parameter", meant=f"{{{colon[1][1:]}}}")


def _check_match(match: str) -> str:
    if not all(map(str.isprintable, match.split())):
        raise RefusedError("a path or name has no control characters; remove it")
    parse_match(match)
    return match


_PATTERN: Final = r"^\s*([*]|([A-Z]+\s+)?/[^\s?#*]*|MCP(\s+/[^\s?#*]*)?\s+[^\s/]\S*(\s+\S+)?)\s*$"
MATCH_SHAPE: Final = scalar(_check_match, _ALLOWED, pattern=_PATTERN)


_DIGITS: Final = frozenset("0123456789")
# What a parameter is sure to take of another line: single characters of it, and its parameters by convertor.
_TAKES: Final = {
    "str": frozenset({"str", "int", "float", "uuid"}),
    "int": frozenset({"int"}),
    "float": frozenset({"float", "int"}),
    "uuid": frozenset({"uuid"}),
}


Match = tuple[str | None, str | None]
"""A method and a path template, as :func:`meterkit.catalog.match_lines.parse_match` gives them."""


def unnamed_methods(match: str, others: Iterable[str]) -> list[str]:
    """The usual methods of a line's path that no line names; the feature of the line holds for these, too.

    Args:
        match: of the line, with a method.
        others: the lines of the file.
    """
    path = parse_match(match)[1]
    named = [one for one in map(parse_match, others) if one[0] is not None]
    usual = (method for method in METHODS[:7] if method != "HEAD")
    return [method for method in usual if not any(covers(one, (method, path)) for one in named)]


def covers_line(earlier: str, later: str) -> bool:
    """Whether every request that falls under the ``match`` line ``later`` falls under ``earlier``."""
    first, second = parse_mcp(earlier), parse_mcp(later)
    if first is not None and (second is None or not covers_messages(first[1], second[1])):
        return False
    return covers(parse_match(earlier), parse_match(later))


def covers(earlier: Match, later: Match) -> bool:
    """Whether every request that falls under ``later`` falls under ``earlier``.

    A line reported as covered is covered; not every covered line is found. Line breaks in paths, which
    ``{key:path}`` of ``exempt`` and ``always`` lines does not take, are left out of account.
    """
    method, path = earlier
    later_method, later_path = later
    if path is None:
        return True
    return later_path is not None and covers_method(method, later_method) and _covers_path(path, later_path)


def covers_method(method: str | None, later: str | None) -> bool:
    """Whether a line of one method takes all requests of another; None stands for any but websockets."""
    if method is None:
        return later != WEBSOCKET
    return method == later or (method == "GET" and later == "HEAD")


def _covers_path(path: str, later: str) -> bool:
    """Follow the steps of ``path`` along the parts of ``later``, all ways at once."""
    literal = path.partition("{")[0]
    if not later.startswith(literal):
        return False
    steps = [step for part in _split_template(path[len(literal) :]) for step in _steps_of(part)]
    reached = _add_skippable({0}, steps)
    for part in _split_template(later[len(literal) :]):
        reached = _add_skippable(
            {
                at if steps[at][1] else at + 1
                for at in reached
                if at < len(steps) and _step_matches(steps[at][0], part)
            },
            steps,
        )
    return len(steps) in reached


def _split_template(path: str) -> list[str]:
    """Single characters, and for each parameter ``{convertor}``."""
    found: list[str] = []
    end = 0
    for parameter in PARAMETER.finditer(path):
        found += path[end : parameter.start()]
        found.append(f"{{{parameter[2] or 'str'}}}")
        end = parameter.end()
    return [*found, *path[end:]]


def _steps_of(part: str) -> list[tuple[str, bool]]:
    """Steps that match a part; the flag marks one that matches any number of parts, including none."""
    if part == "{path}":
        return [(part, True)]
    more = {"{str}": "{str}", "{int}": "{int}", "{float}": "{int}"}.get(part)
    return [(part, False), (more, True)] if more else [(part, False)]


def _add_skippable(reached: Iterable[int], steps: list[tuple[str, bool]]) -> set[int]:
    """With the steps that may be passed over."""
    found = set[int]()
    for at in reached:
        further = at
        found.add(further)
        while further < len(steps) and steps[further][1]:
            further += 1
            found.add(further)
    return found


def _step_matches(step: str, part: str) -> bool:
    if step == "{path}":
        return True
    if len(step) == 1 or part == "{path}":
        return step == part
    convertor = step.strip("{}")
    if len(part) > 1:
        return part.strip("{}") in _TAKES[convertor]
    if convertor == "str":
        return part != "/"
    return convertor in {"int", "float"} and part in _DIGITS


def parse_mcp(match: str) -> tuple[str, McpMatch] | None:
    """The endpoint's path of an MCP line, and what it takes; None where the line is no MCP line.

    Raises:
        RefusedError: it is one that cannot be read.
    """
    words = match.split()
    if not words or words[0] != MCP:
        return None
    path, *rest = words[1:] if len(words) > 1 and words[1].startswith("/") else (ENDPOINT, *words[1:])
    if len(rest) not in {1, 2}:
        raise RefusedError(f"allowed: {_MCP_ALLOWED}")
    method, name = rest[0], rest[1] if len(rest) > 1 else None
    if name is not None and method not in NAMED_METHODS:
        near = nearest(method, NAMED_METHODS)
        reason = f"only messages of {' and '.join(NAMED_METHODS)} have names"
        raise RefusedError(reason, meant=f'"MCP {near} {name}"' if near else None)
    return path, McpMatch(method, name)


def covers_messages(earlier: McpMatch, later: McpMatch) -> bool:
    """Whether every message that falls under ``later`` falls under ``earlier``; in doubt not."""
    if not covers_pattern(earlier.method, later.method):
        return False
    if earlier.name is None or earlier.name == "*":
        return True
    return later.name is not None and covers_pattern(earlier.name, later.name)
