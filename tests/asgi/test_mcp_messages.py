"""Messages of MCP, and answers to them, as they are read: pure tables."""

# Internals: pure tables of bytes; a server shows each only as a count.

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from time import process_time
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

import pytest

from drivers.app import http_scope
from drivers.mcp_apps import PLANS
from meterkit.asgi.mcp_answers import AnswerReader
from meterkit.asgi.mcp_messages import MESSAGE_BYTES_MAX, McpMessage, UnreadableMessageError, read_message
from meterkit.asgi.mcp_requests import McpLines
from meterkit.asgi.routing import Router
from meterkit.catalog import loads
from meterkit.tokens.framing.incremental import drain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.catalog import Route

pytestmark = pytest.mark.anyio

SEARCH: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_web","arguments":{"q":"x"}}}'
)
PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def of(**changes: str) -> bytes:
    """A search, with members in other words of JSON."""
    members = {
        "jsonrpc": '"2.0"',
        "id": "1",
        "method": '"tools/call"',
        "params": '{"name":"search_web","arguments":{"q":"x"}}',
    }
    return ("{" + ",".join(f'"{name}":{text}' for name, text in (members | changes).items()) + "}").encode()


HOSTILE: Final[dict[str, bytes]] = {
    "plain": SEARCH,
    "escaped method": SEARCH.replace(b"tools/call", b"\\u0074ools\\/call"),
    "escaped name": SEARCH.replace(b"search_web", b"\\u0073earch\\u005fweb"),
    "escaped keys": SEARCH.replace(b'"method"', b'"m\\u0065thod"').replace(b'"name"', b'"n\\u0061me"'),
    "method twice": SEARCH.replace(b'"method"', b'"method":"ping","method"'),
    "method twice, last ping": SEARCH[:-1] + b',"method":"ping"}',
    "method twice, escaped": SEARCH[:-1] + b',"\\u006dethod":"ping"}',
    "params twice": SEARCH[:-1] + b',"params":{"name":"add","arguments":{"a":1,"b":2}}}',
    "name twice": SEARCH.replace(b'"name"', b'"name":"add","name"'),
    "name twice, last": SEARCH.replace(b'"arguments"', b'"name":"add","arguments"'),
    "other letters": SEARCH.replace(b'"name"', b'"Name":"add","name"'),
    "long s": SEARCH.replace(
        b'"params"', '"param\N{LATIN SMALL LETTER LONG S}":{"name":"add"},"params"'.encode()
    ),
    "blanks": b" \r\n\t" + SEARCH.replace(b":", b" : ") + b"\n",
    "order": (
        b'{"params":{"arguments":{"q":"x"},"name":"search_web"},"method":"tools/call","id":1,"jsonrpc":"2.0"}'
    ),
    "batch": b"[" + SEARCH + b"]",
    "batch of two": b"[" + PING + b"," + SEARCH + b"]",
    "byte order mark": b"\xef\xbb\xbf" + SEARCH,
    "utf-16": SEARCH.decode().encode("utf-16"),
    "utf-32": SEARCH.decode().encode("utf-32-le"),
    "NaN": of(params='{"name":"search_web","arguments":{"q":"x","z":NaN}}'),
    "large number": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "9" * 5000 + "}}"),
    "surrogate": of(params='{"name":"search_web","arguments":{"q":"\\ud800"}}'),
    "deep": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 150 + "]" * 150 + "}}"),
    "deeper": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 900 + "]" * 900 + "}}"),
    "deepest": of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 9000 + "]" * 9000 + "}}"),
    "many values": of(params='{"name":"search_web","arguments":{"q":"x","z":[' + "1," * 20_000 + "1]}}"),
    "large": of(params='{"name":"search_web","arguments":{"q":"' + "x" * (3 << 20) + '"}}'),
    "large with escapes": of(params='{"name":"search_web","arguments":{"q":"' + "\\n" * (1 << 20) + '"}}'),
    "too large": of(params='{"name":"search_web","arguments":{"q":"' + "x" * (5 << 20) + '"}}'),
    "notification": SEARCH.replace(b'"id":1,', b""),
    "id null": of(id="null"),
    "id text": of(id='"1"'),
    "id object": of(id="{}"),
    "id a float": of(id="1.5"),
    "name a number": of(params='{"name":5,"arguments":{}}'),
    "params a list": of(params='["search_web"]'),
    "name with blanks": of(params='{"name":" search_web ","arguments":{"q":"x"}}'),
    "name in capitals": of(params='{"name":"SEARCH_WEB","arguments":{"q":"x"}}'),
    "method in capitals": of(method='"TOOLS/CALL"'),
    "after a null": of(params='{"name":"add\\u0000","name":"search_web","arguments":{"q":"x"}}'),
    "meta names another": of(params='{"_meta":{"name":"add"},"name":"search_web","arguments":{"q":"x"}}'),
    "empty": b"",
    "no JSON": b"search",
    "two messages": SEARCH + PING,
}


@pytest.mark.whole
@pytest.mark.parametrize("case", HOSTILE)
def test_no_body_takes_long(case: str) -> None:
    """Five milliseconds on a quiet machine; here the least processor time of several tries counts."""
    body = HOSTILE[case][:MESSAGE_BYTES_MAX]

    def once() -> float:
        begun = process_time()
        with suppress(UnreadableMessageError):
            read_message(body)
        return process_time() - begun

    assert min(once() for _ in range(7)) < 0.02


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (SEARCH, McpMessage(method="tools/call", name="search_web", id=1)),
        (PING, McpMessage(method="ping", id=1)),
        (b'{"jsonrpc":"2.0","id":7,"result":{}}', McpMessage(method=None, id=7, is_request=False)),
        (
            b'{"jsonrpc":"2.0","method":"notifications/initialized"}',
            McpMessage(method="notifications/initialized", is_request=False),
        ),
        (b'{"id":true,"method":"x"}', McpMessage(method="x", id=None)),
    ],
)
def test_messages_are_read(body: bytes, expected: McpMessage) -> None:
    assert expected == read_message(body)


INTERIM: Final = (
    b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":'
    b'"elicitation/create","params":{"mode":"form","message":"isError"}}},"requestState":"s"}}'
)
COMPLETE: Final = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[],"isError":false}}'
FAILED: Final = b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}'
ERROR: Final = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}'
LOG: Final = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":{"result":1}}}'
JSON: Final = b"application/json"
SSE: Final = b"text/event-stream"


def event(data: bytes, *, end: bytes = b"\n") -> bytes:
    """A server-sent event; data of several lines has a field for each."""
    lines = [b"event: message", *(b"data: " + line for line in data.split(b"\n"))]
    return end.join([*lines, b"", b""])


def pretty(message: bytes) -> bytes:
    """The same JSON on several lines."""
    return json.dumps(json.loads(message), indent=1).encode()


IMAGE: Final = b"A" * 400_000
LARGE: Final = {
    "interim": INTERIM.replace(b"isError", IMAGE),
    "server_error": FAILED.replace(b"[]", b'[{"type":"text","text":"' + IMAGE + b'"}]'),
}
DEEP: Final = b"[" * 100_000
ANSWERS: Final[list[tuple[bytes, bytes, str | None]]] = [
    (COMPLETE, JSON, None),
    (INTERIM, JSON, "interim"),
    (pretty(INTERIM), b"application/json; charset=utf-8", "interim"),
    (LARGE["interim"], JSON, "interim"),
    (INTERIM.replace(b"input_required", b"task"), JSON, None),
    (FAILED, JSON, "server_error"),
    (FAILED.replace(b"true", b"1"), JSON, None),
    (LARGE["server_error"], JSON, "server_error"),
    (FAILED.replace(b"{", b'{"resultType":"input_required",', 2), JSON, "server_error"),
    (ERROR, JSON, "server_error"),
    (ERROR.replace(b"-32603", b"-32602"), JSON, "client_error"),
    (ERROR.replace(b"-32603", b"-32600"), b"Application/JSON", "client_error"),
    (ERROR.replace(b"-32603", b"-32000"), JSON, "server_error"),
    (b"", JSON, None),
    (DEEP, JSON, None),
    (b"[]", JSON, None),
    (b'{"result":[]}', JSON, None),
    (b'{"error":"x"}', JSON, None),
    (b"\x1f\x8b", JSON, None),
    (event(INTERIM), SSE, "interim"),
    (event(INTERIM, end=b"\r\n"), b"text/event-stream; charset=utf-8", "interim"),
    (event(INTERIM, end=b"\r"), SSE, "interim"),
    (event(pretty(INTERIM)), SSE, "interim"),
    (event(pretty(FAILED), end=b"\r\n"), SSE, "server_error"),
    (event(pretty(FAILED), end=b"\r"), SSE, "server_error"),
    (event(FAILED.replace(b',"result"', b'\n,"result"')), SSE, "server_error"),
    (event(LARGE["interim"]), SSE, "interim"),
    (event(pretty(LARGE["server_error"]), end=b"\r\n"), SSE, "server_error"),
    (b"\xef\xbb\xbf" + event(FAILED), SSE, "server_error"),
    (b"id: 7\ndata:\n\nretry: 9\n\n" + event(FAILED) + b": ping\n\n", SSE, "server_error"),
    (b": x\nid: 8\ndata:" + FAILED + b"\nretry: 1\n\n", SSE, "server_error"),
    (event(LOG) * 3 + event(FAILED) + event(LOG), SSE, "server_error"),
    (event(LOG) + event(INTERIM) + event(LOG), SSE, "interim"),
    (event(LOG) * 9_000 + event(FAILED), SSE, "server_error"),
    (event(FAILED) + event(b"[DONE]") + b"event: end\ndata: {}\n\n", SSE, "server_error"),
    (event(FAILED).rstrip(b"\n"), SSE, "server_error"),
    (event(COMPLETE) + event(LOG), SSE, None),
    (event(LOG), SSE, None),
    (b": ping\n\n", SSE, None),
]


@pytest.mark.parametrize(("body", "kind", "expected"), ANSWERS)
@pytest.mark.parametrize("coding", [b"", b"gzip"])
def test_an_answer_says_its_outcome(body: bytes, kind: bytes, expected: str | None, coding: bytes) -> None:
    sent = gzip.compress(body, 1) if coding else body
    pieces = range(1, len(sent)) if len(sent) < 300 else (1, len(sent) // 2, len(sent) - 1)
    for cut in [len(sent), *pieces]:
        reader = AnswerReader([(b"Content-Type", kind), (b"content-encoding", coding)])
        for piece in (sent[:cut], sent[cut:]):
            drain(reader.read(piece))
        assert (reader.close(), reader.close()) == (expected, expected)


def test_an_answer_is_read_byte_by_byte() -> None:
    for body in (INTERIM, pretty(FAILED), event(pretty(FAILED), end=b"\r\n") + event(LOG)):
        reader = AnswerReader([(b"content-type", JSON if body.startswith(b"{") else SSE)])
        for at in range(len(body)):
            drain(reader.read(body[at : at + 1]))
        assert reader.close() is not None


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
