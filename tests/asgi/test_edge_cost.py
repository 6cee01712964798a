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
from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.catalog import load

pytestmark = pytest.mark.anyio

PLANS: Final = Path(__file__).parents[2] / "benchmarks/plans"
COST: Final = {
    (3, 11): {"decide": 888, "settle": 1344, "hot decide": 750, "hot settle": 757},
    (3, 12): {"decide": 841, "settle": 1254, "hot decide": 711, "hot settle": 717},
    (3, 13): {"decide": 832, "settle": 1253, "hot decide": 704, "hot settle": 710},
}
"""By version of Python: two rates, decided only; and two rates with included usage, settled, too. Hot ones
are admitted by an allotment."""
MOST_PERCENT: Final = 103


@pytest.mark.skipif(sys.gettrace() is not None, reason="something else traces this process")
@pytest.mark.skipif(sys.version_info[:2] not in COST, reason="what it costs on this version is not known")
@pytest.mark.parametrize("variant", ["decide", "settle", "hot decide", "hot settle"])
async def test_a_request_costs_no_more_than_it_did(store_url: str, variant: str) -> None:
    known = COST[sys.version_info[0], sys.version_info[1]].get(variant)
    if known is None:
        pytest.skip("what it costs on this version is not known")
    is_hot, name = variant.startswith("hot"), variant.removeprefix("hot ")
    sold = replace(load(PLANS / f"{name}.yaml"), allotment="250ms" if is_hot else "off")
    kit = MeterKit(sold, redis_url=store_url, flush=False)
    app = MeterMiddleware(hello, kit=kit, identify=identify.header("x-customer-id"))
    scope = partial(http_scope, "/v1/items/1")
    async with kit:
        found = await fewest(app, kit, scope, is_hot=is_hot)
    print(*(f"{count:6} {name}" for name, count in found.most_common()), sep="\n")  # noqa: T201 - see above
    print(f"{found.total():6} instead of {known}")  # noqa: T201 - see above
    assert 100 * found.total() <= MOST_PERCENT * known
