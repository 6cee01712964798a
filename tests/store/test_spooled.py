"""A record of the spool is read as it was written, by whichever release wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from faults.refusals import catalog
from meterkit.decisions.event_marks import EventMark
from meterkit.redis.settling import Sent
from meterkit.redis.url import parse_redis_url
from meterkit.store.hold import Correction, Held, Mark, Used
from meterkit.store.replay import read, write
from meterkit.store.settlement import Settlement
from meterkit.store.store import Store

if TYPE_CHECKING:
    from meterkit.store.views import CustomerCache

AT_MS = 1_800_000_000_000
SENT = Sent("mk:{3}:w:abc", 7, 5)


@pytest.fixture
def cache() -> CustomerCache:
    return Store(parse_redis_url("redis://127.0.0.1:6379/0"), catalog()).cache


def said(settlement: Settlement) -> dict[str, Any]:
    """All that is applied of a settlement, but for when."""
    names = ("customer", "held", "slot", "used", "correction", "event", "mark")
    return {name: getattr(settlement, name) for name in names} | {"anonymous": settlement.view.anonymous}


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"used": Used.of({"requests": 1})},
        {"used": Used(rated={"requests": 1})},
        {"used": Used.of({"tokens": 10**15 - 1}, model="großes", provider='of "one\'s" own')},
        {"used": Used({"tokens": 3}, {"tokens": 4}, {"model": "m"}, measured={})},
        {"used": Used({"tokens": 3}, {"tokens": 4}, {"model": "m"}, measured={"tokens": 2})},
        {"held": Held({"tokens": 9}, ("requests",), 6_000_000)},
        {"held": Held({"tokens": 9}, (), 6_000_000, {"tokens": 1_500})},
        {
            "held": Held({"tokens": 9}, (), 6_000_000),
            "correction": Correction({"tokens": 9}, frozenset({"a", "b"}), AT_MS - 5),
        },
        {"used": Used.of({"requests": 1}), "event": EventMark("mk:{3}:e:0a", "order-1", {"requests": 1})},
        {"used": Used.of({"requests": 1}), "event": EventMark("mk:{3}:e:0b")},
        {"used": Used.of({"requests": 1}), "mark": Mark("0a" * 16, billed=True)},
        {"used": Used.of({"requests": 1}), "mark": Mark("0a" * 16, billed=False)},
    ],
)
def test_a_record_is_read_as_it_was_written(
    cache: CustomerCache, parts: dict[str, Any], *, anonymous: bool
) -> None:
    settlement = Settlement(cache.get("192.0.2.1", anonymous=anonymous), **parts)
    # Requests share their settlement: what is theirs alone is new in each record.
    for number, at_ms, sent in ((1, AT_MS, None), (2, AT_MS + 9, SENT), (3, AT_MS + 9, None)):
        found = read(write(settlement, number, at_ms, sent), cache)
        assert (found.number, found.sent) == (number, sent)
        assert said(found.settlement) == said(settlement)
        assert (found.settlement.occurred_ms, found.settlement.rated_ms) == (at_ms, at_ms)


def test_an_instant_that_the_app_has_named_stands(cache: CustomerCache) -> None:
    settlement = Settlement(cache.get("acme"), used=Used.of({"tokens": 5}), occurred_ms=AT_MS - 1000)
    found = read(write(settlement, 1, AT_MS, None), cache).settlement
    assert (found.occurred_ms, found.rated_ms) == (AT_MS - 1000, AT_MS)


def test_i12_a_record_of_the_release_before_is_read(cache: CustomerCache) -> None:
    record = (
        b'{"n":4,"c":"acme","at":1800000000000,"anonymous":true,"sent":["mk:{3}:w:abc",7,5],'
        b'"recorded":{"tokens":3},"rated":{"tokens":4},"measured":{},"dimensions":{"model":"m"},'
        b'"held":[{"tokens":9},["requests"],6000000],"correction":[{"tokens":9},["a","b"],5],'
        b'"event":"mk:{3}:e:0a","mark":["0a",true]}'
    )
    number, settlement, sent = read(record, cache)
    assert (number, sent, settlement.rated_ms) == (4, SENT, AT_MS)
    assert said(settlement) == {
        "customer": "acme",
        "anonymous": True,
        "held": Held({"tokens": 9}, ("requests",), 6_000_000),
        "slot": 6_000_000,
        "used": Used({"tokens": 3}, {"tokens": 4}, {"model": "m"}, {}),
        "correction": Correction({"tokens": 9}, frozenset({"a", "b"}), 5),
        "event": EventMark("mk:{3}:e:0a"),
        "mark": Mark("0a", billed=True),
    }
