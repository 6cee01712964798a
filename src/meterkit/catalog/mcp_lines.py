"""``match: "MCP tools/call search*"``: lines for messages of the Model Context Protocol."""

from __future__ import annotations

from typing import Final

from meterkit.catalog.errors import RefusedError, nearest
from meterkit.catalog.mcp_match import NAMED_METHODS, McpMatch
from meterkit.catalog.model_prices import has_all_of

MCP: Final = "MCP"
ENDPOINT: Final = "/mcp"
"""The path of an MCP endpoint that the line does not name: the default of the SDKs."""
_ALLOWED: Final = (
    'the method and the name of a tool or prompt, such as "MCP tools/call search*", "MCP tools/call", "MCP *"'
    ' or, with the endpoint\'s path, "MCP /api/mcp tools/call"'
)


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
        raise RefusedError(f"allowed: {_ALLOWED}")
    method, name = rest[0], rest[1] if len(rest) > 1 else None
    if name is not None and method not in NAMED_METHODS:
        near = nearest(method, NAMED_METHODS)
        reason = f"only messages of {' and '.join(NAMED_METHODS)} have names"
        raise RefusedError(reason, meant=f'"MCP {near} {name}"' if near else None)
    return path, McpMatch(method, name)


def takes_all_messages(earlier: McpMatch, later: McpMatch) -> bool:
    """Whether every message that falls under ``later`` falls under ``earlier``; in doubt not."""
    if not has_all_of(earlier.method, later.method):
        return False
    if earlier.name is None or earlier.name == "*":
        return True
    return later.name is not None and has_all_of(earlier.name, later.name)
