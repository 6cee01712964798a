"""Asks a server, before it is used, whether it is fit for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import SettingsError
from meterkit.redis import scripts
from meterkit.redis.connection import ReplyError
from meterkit.redis.server import commands_to_try, eviction_warning, rights_refusal

if TYPE_CHECKING:
    from meterkit.decisions.keys import Keys
    from meterkit.redis.reconnect import Link
    from meterkit.redis.url import Address

__all__ = ["inspect"]

_logger: Final = logging.getLogger("meterkit.store")
_NO_RIGHT: Final = "NOPERM"
_NOT_KNOWN: Final = (
    "its user may not ask for INFO, so whether it evicts keys is not known; it must not (maxmemory-policy"
    " noeviction)"
)


async def inspect(link: Link, keys: Keys, address: Address) -> bool:
    """See, before a store is used, that its user may do all that is needed; warn of what endangers it.

    One round trip; nothing is written. A server that cannot say what its user may do is believed.

    Returns:
        Whether that is done; False: the server does not serve now, and the next connection is to be asked.

    Raises:
        SettingsError: the user lacks a right; the message says which, and how to give it. Without it a script
            would stop half way.
        StoreError: the server does not answer.
    """
    words: list[str | int] = []
    for command in commands_to_try(keys.shard(0, "dirty")):
        words += (len(command), *command)
    asked = link.ask("EVAL", scripts.load("rights").text, 0, *words), link.ask("INFO", "memory")
    rights, memory = await asyncio.gather(*asked)
    if not _may_do_all(rights, keys, address):
        return False
    warning = _warning(memory)
    if warning is not None:
        _logger.warning("the store at %s: %s", address, warning)
    return True


def _may_do_all(reply: Any, keys: Keys, address: Address) -> bool:
    user = address.username or "default"
    if isinstance(reply, ReplyError):
        if reply.code == _NO_RIGHT:
            raise _refused(address, f"{reply}. Add the right: ACL SETUSER {user} +eval")
        _logger.info("the store at %s does not say what its user may do: %s", address, reply)
        return reply.code == "ERR"
    refusal = rights_refusal(reply, user=user, prefix=keys.prefix)
    if refusal is not None:
        raise _refused(address, refusal)
    return True


def _warning(reply: Any) -> str | None:
    """What a server would do to the data some day."""
    if isinstance(reply, ReplyError):
        return _NOT_KNOWN
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return eviction_warning({name: value for name, _, value in lines})


def _refused(address: Address, why: str) -> SettingsError:
    return SettingsError("redis_url", f"redis_url: the store at {address}: {why}")
