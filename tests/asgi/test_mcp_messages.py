"""Messages of MCP, and answers to them, as they are read: pure tables."""

# Internals: pure tables of bytes; a server shows each only as a count.

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import pytest

from drivers.app import http_scope
from drivers.mcp_apps import (
    COMPLETE,
    FAILED,
    INTERIM,
    JSON,
    LARGE,
    LOG,
    PLANS,
    SSE,
    event,
    pretty,
)
from drivers.sampled import pairs
from meterkit.asgi.mcp_answers import AnswerReader
from meterkit.asgi.mcp_messages import McpMessage
from meterkit.asgi.mcp_requests import McpLines
from meterkit.asgi.routing import Router
from meterkit.catalog import loads
from meterkit.tokens.framing.incremental import drain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Route

pytestmark = pytest.mark.anyio


ERROR: Final = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}'
DEEP: Final = b"[" * 100_000
ANSWERS: Final[list[tuple[bytes, bytes, str | None]]] = [
    (COMPLETE, JSON, None),
    (INTERIM, JSON, "interim"),
    (INTERIM.replace(b"input_required", b"task"), JSON, None),
    (FAILED, JSON, "server_error"),
    (FAILED.replace(b"true", b"1"), JSON, None),
    (LARGE["server_error"], JSON, "server_error"),
    (FAILED.replace(b"{", b'{"resultType":"input_required",', 2), JSON, "server_error"),
    (ERROR, JSON, "server_error"),
    (ERROR.replace(b"-32603", b"-32602"), JSON, "client_error"),
    (ERROR.replace(b"-32603", b"-32600"), b"Application/JSON", "client_error"),
    (b"", JSON, None),
    (DEEP, JSON, None),
    (b'{"result":[]}', JSON, None),
    (b'{"error":"x"}', JSON, None),
    (event(INTERIM), SSE, "interim"),
    (event(INTERIM, end=b"\r\n"), b"text/event-stream; charset=utf-8", "interim"),
    (event(pretty(FAILED), end=b"\r"), SSE, "server_error"),
    (event(FAILED.replace(b',"result"', b'\n,"result"')), SSE, "server_error"),
    (event(pretty(LARGE["server_error"]), end=b"\r\n"), SSE, "server_error"),
    (b"\xef\xbb\xbf" + event(FAILED), SSE, "server_error"),
    (b": x\nid: 8\ndata:" + FAILED + b"\nretry: 1\n\n", SSE, "server_error"),
    (event(LOG) * 3 + event(FAILED) + event(LOG), SSE, "server_error"),
    (event(FAILED).rstrip(b"\n"), SSE, "server_error"),
    (event(COMPLETE) + event(LOG), SSE, None),
    (event(LOG), SSE, None),
]


@pytest.mark.parametrize(("coding", "answer"), pairs([b"", b"gzip"], ANSWERS))
def test_an_answer_says_its_outcome(coding: bytes, answer: tuple[bytes, bytes, str | None]) -> None:
    body, kind, expected = answer
    sent = gzip.compress(body, 1) if coding else body
    pieces = range(1, len(sent)) if len(sent) < 300 else (1, len(sent) // 2, len(sent) - 1)
    for cut in [len(sent), *pieces]:
        reader = AnswerReader([(b"Content-Type", kind), (b"content-encoding", coding)])
        for piece in (sent[:cut], sent[cut:]):
            drain(reader.read(piece))
        assert (reader.close(), reader.close()) == (expected, expected)


async def test_many_combinations_of_lines_are_kept_within_a_bound() -> None:
    lines = [f'  - {{match: "MCP tools/call *{letter}*", rate: 9/hour}}' for letter in "abcdefghi"]
    plans = PLANS.replace("routes:\n", "\n".join(["routes:", *lines, ""]))
    made: WeakSet[Router] = WeakSet()

    def router_of(routes: Sequence[Route]) -> Router:
        router = Router(routes)
        made.add(router)
        return router

    lines_of = McpLines(loads(plans).routes, router_of)
    for nth in range(2**9):
        name = "".join(letter for place, letter in enumerate("abcdefghi") if nth >> place & 1)
        scope = http_scope("/mcp", method="POST")
        found = lines_of.line(McpMessage(method="tools/call", name=name), scope)
        expected = f"MCP tools/call *{name[0]}*" if name else "MCP tools/call"
        assert found is not None
        assert expected == found.match
    assert len(made) <= 256
