"""The ``match`` line of a route: a method and a Starlette path template, or ``*``."""

from __future__ import annotations

import re
from typing import Final

from meterkit.catalog.errors import RefusedError, nearest, quoted
from meterkit.catalog.scalars import scalar

WEBSOCKET: Final = "WS"
METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", WEBSOCKET,
)  # fmt: skip
CONVERTORS: Final = ("str", "path", "int", "float", "uuid")

PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([A-Za-z_][A-Za-z0-9_]*))?\}")
_COLON: Final = re.compile(r"/(:[A-Za-z_][A-Za-z0-9_]*)(?=/|$)")
_ALLOWED: Final = 'a path template such as "POST /v1/items/{id}", "/v1/{path:path}", "WS /v1/live", or "*"'


def parse_match(match: str) -> tuple[str | None, str | None]:
    """The method and the path template of a ``match`` line; None for any.

    Raises:
        RefusedError: it is none.
    """
    words = match.split()
    if words == ["*"]:
        return None, None
    if len(words) not in {1, 2}:
        raise RefusedError(f"allowed: {_ALLOWED}; one method at most")
    method, path = (None, words[0]) if len(words) == 1 else (words[0], words[1])
    if method is not None and method not in METHODS:
        raise _unknown_method(method, path)
    if path == "*":
        raise RefusedError("`*` stands alone", meant=f'"{method} /{{path:path}}"')
    if method is None and path.upper() in METHODS:
        raise RefusedError("the path is missing", meant=f'"{path.upper()} /{{path:path}}"')
    if not path.startswith("/"):
        raise RefusedError(f"a path starts with /; allowed: {_ALLOWED}")
    _check_template(path)
    return method, path


def _unknown_method(method: str, path: str) -> RefusedError:
    if method.upper() in {"ANY", "ALL", "*"}:
        return RefusedError("for any method leave the method away", meant=f'"{path}"')
    near = method.upper() if method.upper() in METHODS else nearest(method, METHODS)
    reason = f"{quoted(method)} is not a method; allowed: {', '.join(METHODS)}"
    return RefusedError(reason, meant=near and f'"{near} {path}"')


def _check_template(path: str) -> None:
    query = path.find("?") if "?" in path else path.find("#")
    if query >= 0:
        raise RefusedError(f"a match is a path only; remove {path[query:]!r}")
    seen: set[str] = set()
    for name, convertor in PARAMETER.findall(path):
        if name in seen:
            raise RefusedError(f"the parameter {name!r} stands twice in the path; rename one")
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


def _valid_match(match: str) -> str:
    parse_match(match)
    return match


MATCH_SHAPE: Final = scalar(_valid_match, _ALLOWED, pattern=r"^\s*([*]|([A-Z]+\s+)?/[^\s?#*]*)\s*$")
