"""``match: "MCP tools/call search*"``: lines for messages of the Model Context Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from meterkit.catalog.errors import RefusedError, nearest
from meterkit.catalog.model_prices import has_all_of

MCP: Final = "MCP"
ENDPOINT: Final = "/mcp"
"""The path of an MCP endpoint that the line does not name: the default of the SDKs."""
NAMED_METHODS: Final = ("tools/call", "prompts/get")
"""The methods whose ``params.name`` is a text that servers compare as it is; a resource's address is not."""
_ALLOWED: Final = (
    'the method and the name of a tool or prompt, such as "MCP tools/call search*", "MCP tools/call", "MCP *"'
    ' or, with the endpoint\'s path, "MCP /api/mcp tools/call"'
)


@dataclass(frozen=True, slots=True)
class McpMatch:
    """Which messages fall under a line.

    Attributes:
        method: a glob pattern of JSON-RPC methods; ``*`` takes messages without one, too.
        name: a glob pattern of the names of tools or prompts; None: any.
    """

    method: str
    name: str | None = None

    def takes(self, method: str | None, name: str | None) -> bool:
        """Whether a message of this method falls under the line, and of this name where it has one."""
        if self.method != "*" and (method is None or not fnmatchcase(method, self.method)):
            return False
        return self.name is None or (name is not None and fnmatchcase(name, self.name))

    def covers(self, other: McpMatch) -> bool:
        """Whether every message that the other line takes falls under this one; in doubt not."""
        if not has_all_of(self.method, other.method):
            return False
        return self.name in {None, "*"} or (
            other.name is not None and has_all_of(self.name or "", other.name)
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
