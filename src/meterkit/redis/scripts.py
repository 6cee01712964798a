"""Lua scripts: loaded from the package, with includes and constants inlined."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pkgutil import get_data
from typing import Final, Literal

NAMES: Final = (
    "decide",
    "allot_requests",
    "settle",
    "fence_producer",
    "amend_state",
    "read_usage",
    "seal",
    "move_intents",
    "lease_shard",
    "change_claim",
    "forget_customer",
    "add_grant",
    "reclaim_grant",
    "move_auto_top_up",
    "void_grants",
    "count_due",
    "recall_intents",
    "set_level",
    "lease_notices",
    "report_notice",
    "queue_sync",
    "lease_entries",
    "finish_entry",
    "change_state",
    "correct_usage",
    "refuse_intent",
    "fold_audit",
    "unfold_audit",
    "rebuild_counters",
    "mark_late_usage",
    "settle_item",
    "withdraw_intent",
    "move_grants",
    "record_objects",
    "hold_upload",
)

Clock = Literal["server", "caller"]
Dialect = Literal["server", "fake"]

_AUDITED: Final = re.compile(r"^ *--audited (.*\n)", re.MULTILINE)
_INCLUDES: Final = re.compile(r"(?:^--include \w+\n)+", re.MULTILINE)
_INCLUDE: Final = re.compile(r"^--include (\w+)\n", re.MULTILINE)
_CONSTANT: Final = re.compile(r"^local ([A-Z_]+) = (\S+)", re.MULTILINE)
_NAME: Final = re.compile(r"\b[A-Z][A-Z_]+\b")
_CALLERS_CLOCK: Final = (
    "local function server_ms(caller_ms)\n  return math.max(0, tonumber(caller_ms))\nend\n"
)


@dataclass(frozen=True, slots=True)
class Script:
    """A script: its name, its text with all includes inlined, and the SHA-1 that EVALSHA names it by."""

    name: str
    text: str
    sha: str


@cache
def load(
    name: str, *, clock: Clock = "server", dialect: Dialect = "server", is_audited: bool = False
) -> Script:
    """Read a script of this package.

    Args:
        name: the file's name without ``.lua``.
        clock: clock of the script; ``caller`` is for tests that set the clock, and changes the SHA, so that a
            server never mixes the two.
        dialect: ``fake`` leaves out the first line, ``#!lua …``, and brings the libraries along: fakeredis
            knows neither.
        is_audited: include the lines that begin with ``--audited``: only kits with an audit log pay for them.
    """
    text = _AUDITED.sub(r"\1" if is_audited else "", _read(f"{name}.lua"))
    text = _with_includes(text, clock)
    constants = dict(_CONSTANT.findall(_read("shared/constants.lua")))
    text = _NAME.sub(lambda match: constants.get(match[0], match[0]), text)
    if dialect == "fake":
        text = _read("shared/fake_libraries.lua") + text.partition("\n")[2]
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _with_includes(text: str, clock: Clock) -> str:
    """Inline all includes of a script, each once.

    The first block of includes is in scope to the end; later ones only in their own block.
    """
    to_the_end: set[str] | None = None

    def inline_all(asked: re.Match[str]) -> str:
        nonlocal to_the_end
        known = set(to_the_end or ())

        def inline(match: re.Match[str]) -> str:
            include = match[1]
            if include in known:
                return ""
            known.add(include)
            if include == "server_ms" and clock == "caller":
                return _CALLERS_CLOCK
            return _INCLUDE.sub(inline, _read(f"include/{include}.lua"))

        inlined = _INCLUDE.sub(inline, asked[0])
        to_the_end = known if to_the_end is None else to_the_end
        return inlined

    return _INCLUDES.sub(inline_all, text)


@cache
def _read(path: str) -> str:
    # Cached: many scripts include the same files.
    return (get_data("meterkit", f"lua/{path}") or b"").decode()
