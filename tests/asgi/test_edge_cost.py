"""The edge's cost of a request, in bytecode instructions of meterkit.

``pytest -rP tests/asgi/test_edge_cost.py`` prints them by function. A change that makes a request dearer by
more than three percent fails. If that is worth it, or it became cheaper, put the new figures into ``COST``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from costs.edge_instructions import fewest
from drivers.app import hello, http_scope
from drivers.llm_apps import answering, openai_stream
from llm_payloads.recordings import DONE, chat, chat_usage, compact, sse
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import load

pytestmark = pytest.mark.anyio

PLANS: Final = Path(__file__).parents[2] / "benchmarks/plans"
COST: Final = {
    (3, 11): {"decide": 884, "settle": 1330, "hot decide": 732, "hot settle": 739, "stream": 14490},
    (3, 12): {"decide": 841, "settle": 1254, "hot decide": 711, "hot settle": 717},
    (3, 13): {"decide": 832, "settle": 1253, "hot decide": 704, "hot settle": 710},
}
"""By version of Python: two rates, decided only; and two rates with included usage, settled, too. Hot ones
are admitted by an allotment. A stream has 20 chunks, tokens are reserved for it and read off it."""
MOST_PERCENT: Final = 103
STREAM: Final = (
    *openai_stream(*[" and the"] * 17),
    sse(chat({}, finish="stop")),
    sse(chat(None, usage=chat_usage(9, 300))),
    DONE,
)
QUESTION: Final = compact(
    {
        "model": "gpt-5.6",
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "max_tokens": 1024,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
)


@pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces this process")
@pytest.mark.skipif(sys.version_info[:2] not in COST, reason="what it costs on this version is not known")
@pytest.mark.parametrize("variant", ["decide", "settle", "hot decide", "hot settle", "stream"])
async def test_a_request_costs_no_more_than_it_did(store_url: str, variant: str) -> None:
    known = COST[sys.version_info[0], sys.version_info[1]].get(variant)
    if known is None:
        pytest.skip("what it costs on this version is not known")
    is_hot, name = variant.startswith("hot"), variant.removeprefix("hot ")
    sold = replace(load(PLANS / f"{name}.yaml"), allotment="250ms" if is_hot else "off")
    kit = MeterKit(sold, redis_url=store_url, flush=False)
    is_stream = variant == "stream"
    served = answering(STREAM, "text/event-stream") if is_stream else hello
    app = MeterMiddleware(served, kit=kit, identify=identify.header("x-customer-id"))
    scope = partial(http_scope, "/v1/items/1")
    if is_stream:
        scope = partial(http_scope, "/v1/chat/completions", method="POST")
    async with kit:
        found = await fewest(app, kit, scope, is_hot=is_hot, body=QUESTION if is_stream else b"")
    print(*(f"{count:6} {name}" for name, count in found.most_common()), sep="\n")  # noqa: T201 - see above
    print(f"{found.total():6} instead of {known}")  # noqa: T201 - see above
    assert 100 * found.total() <= MOST_PERCENT * known
