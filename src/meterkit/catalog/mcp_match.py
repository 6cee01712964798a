"""Which messages of the Model Context Protocol fall under a line of the plans file."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

NAMED_METHODS: Final = ("tools/call", "prompts/get")
"""The methods whose ``params.name`` is a text that servers compare as it is; a resource's address is not."""


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
