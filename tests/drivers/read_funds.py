"""What the usage script says of a hash of grants, run within the process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import fakeredis

from drivers.lua_runtime import compile_once
from meterkit.decisions.grants import Prepaid
from meterkit.decisions.periods import Bounds
from meterkit.decisions.stored_grants import GrantFunds, read_funds
from meterkit.redis import scripts

NOTHING_DUE: Final = '{"mark":"-","recurring":[]}'
_REV: Final = "1:1"


@cache
def _client() -> Any:
    server = fakeredis.FakeServer()
    compile_once(server)
    return fakeredis.FakeRedis(server=server, version=(7, 0))


@cache
def _text() -> str:
    return scripts.load("read_usage", clock="caller", dialect="fake").text


def funds_by_script(
    fields: Mapping[str, str], prepaid: Prepaid | None, bounds: Bounds, now_ms: int
) -> GrantFunds:
    """Grants on file, with those of the plan that are due; without ``prepaid`` none is."""
    client = _client()
    client.flushall()
    client.hset("state", "rev", _REV)
    if fields:
        client.hset("grants", mapping=dict(fields))
    terms = NOTHING_DUE if prepaid is None else prepaid.packed_grants()
    keys = ("counters", "state", "totals", "grants", "levels", "ledger")
    ends = (bounds.start_ms, bounds.end_ms, bounds.next_end_ms)
    return read_funds(client.eval(_text(), len(keys), *keys, _REV, terms, *ends, now_ms)[6])
