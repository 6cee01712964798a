"""The documented rights are those of the commands that the source sends, none more and none fewer."""

# Internals: a pure table of the commands that the source sends.

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from redis.asyncio import Redis

from meterkit.redis.server import CLUSTER_COMMANDS, commands_to_try
from servers.store_users import DOCUMENTED, NEEDED
from servers.stores import spawn_server

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE: Final = Path(__file__).parents[2] / "src" / "meterkit"
COMMAND: Final = re.compile(r"[A-Z]{3,}")
ALSO_OF_OTHERS: Final = {
    # Methods of redis-py's client that other objects have, too: only those of a client count.
    *("append", "command", "copy", "delete", "digest", "dump", "eval", "exists", "get", "info", "keys"),
    *("rename", "reset", "set", "sort", "sync", "time", "touch", "type", "unlink", "wait"),
}
NO_COMMANDS: Final = {
    # Methods of redis-py's client that send no command of their own.
    *("aclose", "client", "close", "echo", "execute_command", "from_url", "json", "lock", "pipeline"),
    *("shutdown", "transaction"),
}
NAMED_OTHERWISE: Final = {"delete": "DEL", "script_load": "SCRIPT", "config_get": "CONFIG"}
ELSEWHERE: Final = {
    # Commands whose rights other sentences of the documentation name.
    "SELECT": "where the URL names a database",
    "CLUSTER": "on a cluster: scaling.md",
    "ASKING": "on a cluster: scaling.md",
    # Sent where no rights are needed, or without a server's user.
    "AUTH": "needs no right",
    "SHUTDOWN": "to an embedded server, which has no users",
    "FLUSHALL": "to the server within the process",
}
UNNAMED: Final = {"MULTI", "EXEC"}
"""redis-py and the lane's connection send them around others."""


def of_scripts(known: set[str]) -> set[str]:
    """Commands that the scripts name, in calls and for helpers that call."""
    texts = (re.sub(r"--.*", "", path.read_text("utf-8")) for path in (SOURCE / "lua").rglob("*.lua"))
    return {word for text in texts for word in re.findall(r"'([A-Z]{3,})'", text) if word in known}


def of_python(known: set[str]) -> set[str]:
    """Commands that modules send: methods of redis-py's clients, and words of requests."""
    methods = {name for name in dir(Redis) if not name.startswith("_")} - NO_COMMANDS
    found = set[str]()
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("testing/") or name == "redis/server.py":  # Stripe in small; the lists themselves.
            continue
        tree = ast.parse(path.read_text("utf-8"))
        clients = {"client", "pipe", "pipeline", *_assigned(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                method = node.func.attr
                if method in methods and (method not in ALSO_OF_OTHERS or _owner(node.func) in clients):
                    found.add(NAMED_OTHERWISE.get(method, method.upper()))
            found.update(word for word in _first_words(node) if word in known)
    return found


def _owner(called: ast.Attribute) -> str:
    """The last name of what a method is called of."""
    return ast.unparse(called.value).rpartition(".")[2].strip("_")


def _assigned(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives to clients and pipelines."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call | ast.Attribute)
            and re.search(r"\.pipeline\(|\.client$", ast.unparse(node.value))
        ):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _first_words(node: ast.AST) -> Iterator[str]:
    """The word that a request begins with, where a call or a tuple has it."""
    parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
    for part in parts[:1]:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            word = part.value.partition(" ")[0]
            if COMMAND.fullmatch(word):
                yield word


@pytest.fixture(scope="module")
def known() -> set[str]:
    """All commands of a server."""
    with spawn_server() as server:
        return {name.upper() for name in server.ask("COMMAND", "LIST")}


@pytest.mark.dear("parses every module of the library")
def test_what_is_sent_is_what_is_documented(known: set[str]) -> None:
    """F-20j: SCAN was sent by background tasks, and not among the documented rights."""
    scripted = of_scripts(known)
    assert len(scripted) > 30
    sent = scripted | of_python(known)
    assert sent - set(ELSEWHERE) | UNNAMED == {name.partition("|")[0] for name in DOCUMENTED}


def test_each_documented_right_is_tried_at_a_start() -> None:
    tried = {
        "|".join(words[:2]) if words[0] in {"SCRIPT", "CLIENT", "XGROUP", "XINFO"} else words[0]
        for words in commands_to_try("mk:{0}:dirty")
    }
    assert tried == {*NEEDED, "SCAN"}


def test_the_rights_of_a_cluster_are_documented() -> None:
    text = (SOURCE.parents[1] / "docs" / "scaling.md").read_text("utf-8")
    assert " ".join(f"+{command.lower()}" for (command,) in CLUSTER_COMMANDS) in text
