"""Users of a server with few rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from meterkit.redis.server import COMMANDS, OPTIONAL_COMMANDS, acl_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servers.stores import Server

NEEDED = tuple(command for command, *_ in COMMANDS)
DOCUMENTED = (*NEEDED, *OPTIONAL_COMMANDS)


def url_of_user(
    server: Server, commands: Iterable[str] = DOCUMENTED, *, rules: str | None = None, prefix: str = "mk"
) -> str:
    """A URL for a user that may run these commands on meterkit's keys, or what the rules say, and no more."""
    given = acl_rules(prefix, commands) if rules is None else rules
    server.command("ACL", "SETUSER", "app", "reset", "on", ">secret")
    for rule in given.split():
        try:
            server.command("ACL", "SETUSER", "app", rule)
        except ResponseError:
            # Redis 7.0 has no such command.
            assert rule == "+waitaof"
    return server.url.replace("redis://", "redis://app:secret@")
