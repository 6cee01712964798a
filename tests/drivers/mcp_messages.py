"""Messages of MCP: calls, spelt plainly and so that parsers differ, and answers to them."""

from __future__ import annotations

import json
from typing import Final

SEARCH: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search_web","arguments":{"q":"x"}}}'
)
PING: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def _of(**changes: str) -> bytes:
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
    "NaN": _of(params='{"name":"search_web","arguments":{"q":"x","z":NaN}}'),
    "large number": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "9" * 5000 + "}}"),
    "surrogate": _of(params='{"name":"search_web","arguments":{"q":"\\ud800"}}'),
    "deep": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 150 + "]" * 150 + "}}"),
    "deeper": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 900 + "]" * 900 + "}}"),
    "deepest": _of(params='{"name":"search_web","arguments":{"q":"x","z":' + "[" * 9000 + "]" * 9000 + "}}"),
    "many values": _of(params='{"name":"search_web","arguments":{"q":"x","z":[' + "1," * 20_000 + "1]}}"),
    "large": _of(params='{"name":"search_web","arguments":{"q":"' + "x" * (3 << 20) + '"}}'),
    "large with escapes": _of(params='{"name":"search_web","arguments":{"q":"' + "\\n" * (1 << 20) + '"}}'),
    "too large": _of(params='{"name":"search_web","arguments":{"q":"' + "x" * (5 << 20) + '"}}'),
    "notification": SEARCH.replace(b'"id":1,', b""),
    "id null": _of(id="null"),
    "id text": _of(id='"1"'),
    "id object": _of(id="{}"),
    "id a float": _of(id="1.5"),
    "name a number": _of(params='{"name":5,"arguments":{}}'),
    "params a list": _of(params='["search_web"]'),
    "name with blanks": _of(params='{"name":" search_web ","arguments":{"q":"x"}}'),
    "name in capitals": _of(params='{"name":"SEARCH_WEB","arguments":{"q":"x"}}'),
    "method in capitals": _of(method='"TOOLS/CALL"'),
    "after a null": _of(params='{"name":"add\\u0000","name":"search_web","arguments":{"q":"x"}}'),
    "meta names another": _of(params='{"_meta":{"name":"add"},"name":"search_web","arguments":{"q":"x"}}'),
    "empty": b"",
    "no JSON": b"search",
    "two messages": SEARCH + PING,
}


INTERIM: Final = (
    b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":'
    b'"elicitation/create","params":{"mode":"form","message":"isError"}}},"requestState":"s"}}'
)
COMPLETE: Final = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[],"isError":false}}'
FAILED: Final = b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError":true}}'
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


_IMAGE: Final = b"A" * 400_000
LARGE: Final = {
    "interim": INTERIM.replace(b"isError", _IMAGE),
    "server_error": FAILED.replace(b"[]", b'[{"type":"text","text":"' + _IMAGE + b'"}]'),
}
