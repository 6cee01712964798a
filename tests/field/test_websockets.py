"""Websockets on real servers: refused with a whole answer, decided per message, closed with 1008."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from drivers.sampled import whole
from faults.refusals import eventually
from field.deployments import Deployment, running
from field.test_servers import LEFT_BEHIND, office
from field.traffic import ready, visiting

pytestmark = pytest.mark.anyio

CUSTOMER: Final = "live-1"
OTHERS: Final = (
    Deployment(server="hypercorn", loop="asyncio", lifespan="on"),
    Deployment(server="uvicorn-h11", loop="asyncio", lifespan="on"),
    Deployment(server="hypercorn", loop="uvloop", lifespan="on"),
)


@pytest.mark.dear("a real server starts, is visited and stops")
@pytest.mark.parametrize(
    "deployment",
    [Deployment(server="uvicorn-httptools", loop="uvloop", lifespan="on"), *(whole(one) for one in OTHERS)],
    ids=str,
)
async def test_websockets_count_and_close(deployment: Deployment, store_url: str, tmp_path: Path) -> None:
    async with office(store_url) as desk:
        customers = desk.kit.customers
        await customers.override(CUSTOMER, {"words": {"included": 3, "overage": "deny"}})
        with running(deployment, tmp_path, **desk.variables) as server:
            async with visiting(server.url) as client:
                await ready(client, server)
            url = server.url.replace("http", "ws", 1) + "/api/v1/live"
            who = {"x-customer-id": CUSTOMER}
            async with connect(url, additional_headers=who) as live:
                assert live.response is not None
                assert live.response.headers["ratelimit"].startswith('"requests-')
                for number in range(3):
                    await live.send(str(number))
                    assert await live.recv() == str(number)
                await live.send("one too many")
                with pytest.raises(ConnectionClosed):
                    await live.recv()
                assert (live.close_code, live.close_reason) == (1008, "words-period")

            async def counted() -> tuple[int, int]:
                meters = (await desk.kit.usage(CUSTOMER))["meters"]
                return meters["words"]["recorded"], meters["requests"]["recorded"]

            async def is_counted() -> bool:
                return await counted() == (3, 1)

            await eventually(is_counted)
            await customers.set_status(CUSTOMER, "unpaid")
            with pytest.raises(InvalidStatus) as refused:
                async with connect(url, additional_headers=who):
                    pass
            answer = refused.value.response
            assert (answer.status_code, answer.headers["content-type"]) == (402, "application/problem+json")
            assert b'"reason":"suspended"' in (answer.body or b"")
            assert server.stop() in {0, -15}
        assert await counted() == (3, 1)
        said = server.log.read_text(errors="replace")
        assert [] == [line for line in said.splitlines() if any(word in line for word in LEFT_BEHIND)]
