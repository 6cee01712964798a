"""Server facts: its errors, its clock, its user's rights, its settings."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from time import time
from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import MeterkitError
from meterkit.redis.daemon_thread import import_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_NAMES: Final = (
    "NoScriptError",
    "ReadOnlyError",
    "OutOfMemoryError",
    "NoPermissionError",
    "ClusterDownError",
    "AskError",
    "TryAgainError",
)
# Codes without a class in redis-py.
_CODES: Final = ("MISCONF ", "NOREPLICAS ", "BUSY ")


def is_refusal(error: object) -> bool:
    """Whether a server has answered with an error."""
    return isinstance(error, _classes()[0])


def is_key_error(error: object) -> bool:
    """Whether a server refused a command because of the value of its key."""
    refusal, of_the_server = _classes()
    return isinstance(error, refusal) and not (
        isinstance(error, of_the_server) or str(error).startswith(_CODES)
    )


@cache
def _classes() -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """redis-py's class of error replies, and its classes of errors about the server itself.

    Their messages lack the code. redis-py is slow to import: it is imported with the first kit.
    """
    errors: Any = import_alone("redis.exceptions")
    return errors.ResponseError, tuple(getattr(errors, name) for name in _NAMES)


_BEHIND_MAX_S: Final = 60.0


def refuse_past_clock(clock: Callable[[], float], store: str) -> Callable[[], float]:
    """Wrap a clock: raise MeterkitError while it is behind the system's.

    A server expires keys by its own time: a key with an expiry in the past is gone at once, and nothing would
    count.

    Args:
        clock: seconds since the epoch.
        store: its address, for the message.
    """

    def now() -> float:
        now_s = clock()
        if now_s < time() - _BEHIND_MAX_S:
            raise MeterkitError(
                f"the clock says {datetime.fromtimestamp(now_s, UTC).isoformat()}, which is past, and {store}"
                " keeps nothing that ended in the past: take memory:// as the store, or a time from now on"
            )
        return now_s

    return now


# Complete requests: with fewer words than a command needs, some servers crash while they look for its keys
# (https://github.com/redis/redis/issues/14843). KEY stands for a key of a shard.
_KEY: Final = "KEY"
COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    ("EVAL", "return 1", "1", _KEY),
    ("EVALSHA", "0" * 40, "1", _KEY),
    ("SCRIPT|LOAD", "return 1"),
    ("PING",),
    ("MULTI",),
    ("EXEC",),
    ("TIME",),
    ("CLIENT|SETNAME", "meterkit"),
    ("DEL", _KEY),
    ("EXISTS", _KEY),
    ("PERSIST", _KEY),
    ("PEXPIRE", _KEY, "1"),
    ("PEXPIREAT", _KEY, "1"),
    ("PTTL", _KEY),
    ("GET", _KEY),
    ("SET", _KEY, "1"),
    ("INCR", _KEY),
    ("DECR", _KEY),
    ("HDEL", _KEY, "f"),
    ("HGET", _KEY, "f"),
    ("HGETALL", _KEY),
    ("HINCRBY", _KEY, "f", "1"),
    ("HKEYS", _KEY),
    ("HLEN", _KEY),
    ("HMGET", _KEY, "f"),
    ("HSCAN", _KEY, "0"),
    ("HSET", _KEY, "f", "1"),
    ("HSETNX", _KEY, "f", "1"),
    ("LLEN", _KEY),
    ("LRANGE", _KEY, "0", "1"),
    ("LTRIM", _KEY, "0", "1"),
    ("RPUSH", _KEY, "m"),
    ("SADD", _KEY, "m"),
    ("SMEMBERS", _KEY),
    ("SREM", _KEY, "m"),
    ("XACK", _KEY, "g", "1"),
    ("XADD", _KEY, "*", "f", "1"),
    ("XCLAIM", _KEY, "g", "c", "1", "1"),
    ("XDEL", _KEY, "1"),
    ("XGROUP|CREATE", _KEY, "g", "0"),
    ("XINFO|GROUPS", _KEY),
    ("XLEN", _KEY),
    ("XPENDING", _KEY, "g"),
    ("XRANGE", _KEY, "-", "+"),
    ("XREADGROUP", "GROUP", "g", "c", "STREAMS", _KEY, ">"),
    ("XREVRANGE", _KEY, "+", "-"),
    ("ZADD", _KEY, "1", "m"),
    ("ZCOUNT", _KEY, "1", "1"),
    ("ZRANGE", _KEY, "1", "1"),
    ("ZRANGEBYSCORE", _KEY, "1", "1"),
    ("ZREM", _KEY, "m"),
    ("ZSCORE", _KEY, "m"),
)
"""Required commands, each with arguments to try the right to it."""
OPTIONAL_COMMANDS: Final = ("SCAN", "WAIT", "INFO", "CONFIG|GET", "WAITAOF", "SCRIPT|EXISTS")
"""Optional commands: without them tasks over all customers fail, delivery waits longer, dangers go unnoticed,
and connecting takes longer."""
CLUSTER_COMMANDS: Final[tuple[tuple[str, ...], ...]] = (("CLUSTER|SLOTS",), ("CLUSTER|NODES",), ("ASKING",))
"""Further commands that a cluster needs."""
_SCAN: Final = ("SCAN", "0")
_TRIED: Final = (*COMMANDS, _SCAN, *CLUSTER_COMMANDS)
_KEEPS_ALL: Final = "noeviction"
_REPLICA_LAG_S: Final = 10


def acl_rules(prefix: str, commands: Iterable[str]) -> str:
    """ACL rules that allow these commands on the keys under a prefix."""
    return " ".join((f"~{prefix}:*", *(f"+{command.lower()}" for command in commands)))


def commands_to_try(key: str, *, of_cluster: bool = False) -> list[list[str]]:
    """The words of each of :data:`COMMANDS` on a key, then those of SCAN and of a cluster."""
    tried = _TRIED if of_cluster else (*COMMANDS, _SCAN)
    return [
        [*command.split("|"), *(key if word == _KEY else word for word in words)] for command, *words in tried
    ]


def words_to_try(key: str, *, of_cluster: bool) -> list[str | int]:
    """Arguments of the script ``rights``: each command after its number of words."""
    found: list[str | int] = []
    for command in commands_to_try(key, of_cluster=of_cluster):
        found += (len(command), *command)
    return found


def rights_refusal(refused: Sequence[int], *, user: str, prefix: str) -> str | None:
    """The problem and its cure if the server would refuse some commands; None if it refuses none.

    Args:
        refused: the places in :func:`commands_to_try`, from 1.
        user: the user's name at the server.
        prefix: what the keys begin with.
    """
    missing = [command for place in refused if (command := _TRIED[place - 1]) is not _SCAN]
    if not missing:
        return None
    names = [command for command, *_ in missing]
    on_keys = sum(_KEY in words for words in COMMANDS)
    if sum(_KEY in words for words in missing) == on_keys:
        what = f"keys that begin with {prefix}:"
    else:
        what = ", ".join(name.replace("|", " ") for name in names)
    return (
        f"the server's user {user!r} has no right to {what}; without it, work would be left half done."
        f" Add it: ACL SETUSER {user} {acl_rules(prefix, names)}"
    )


def scan_refusal(refused: Sequence[int], *, user: str) -> str | None:
    """The problem and its cure if the server would refuse SCAN; None if it does not.

    Args:
        refused: the places in :func:`commands_to_try`, from 1.
        user: the user's name at the server.
    """
    if _SCAN not in (_TRIED[place - 1] for place in refused):
        return None
    return (
        f"the server's user {user!r} has no right to SCAN; without it, tasks over all customers fail:"
        " storage.over after a new plans file, period.summary, operator pages, recalculation of stored"
        f" objects, `meterkit reconcile` and `meterkit usage --all`. Add it: ACL SETUSER {user} +scan"
    )


def eviction_warning(memory: Mapping[str, str]) -> str | None:
    """Warning about the server's eviction policy; None if it evicts nothing.

    Args:
        memory: fields of ``INFO memory``.
    """
    policy = memory.get("maxmemory_policy", _KEEPS_ALL)
    if policy == _KEEPS_ALL:
        return None
    if policy.startswith("volatile-"):
        lost = "counters, event ids and numbers of settlements: usage is lost, or counted twice"
    else:
        lost = "customers' plans, counters and usage that is not billed yet"
    when = "once its memory is full"
    if memory.get("maxmemory") == "0":
        when += " (it has no limit now: maxmemory 0)"
    return (
        f"the server's maxmemory-policy is {policy}: {when} it throws away {lost}; set maxmemory-policy"
        f" {_KEEPS_ALL}"
    )


NODE_OF_CLUSTER: Final = (
    "it is a node of a cluster, and the URL names it as one server, so what other nodes have is out of reach;"
    " let the URL begin with redis+cluster://"
)


def cluster_warning(cluster: Mapping[str, str]) -> str | None:
    """Warning about a node of a cluster that is named as one server; None if it is none.

    Args:
        cluster: fields of ``INFO cluster``.
    """
    return NODE_OF_CLUSTER if cluster.get("cluster_enabled") == "1" else None


def count_replicas(info: Mapping[str, str]) -> int:
    """Number of current replicas of a server, by ``INFO replication``."""
    return sum(
        is_replica_current(text) for name, text in info.items() if name.removeprefix("slave").isdecimal()
    )


def is_replica_current(replica: str) -> bool:
    """Whether a replica is online and at most ten seconds behind, by its line of ``INFO replication``."""
    parts = (part.partition("=") for part in replica.split(","))
    fields = {name: value for name, _, value in parts}
    return fields.get("state") == "online" and int(fields.get("lag") or 0) <= _REPLICA_LAG_S
