"""Names of keys are a format: a process of the next release reads those of this one."""

from __future__ import annotations

from hashlib import blake2b
from zlib import crc32

import pytest

from meterkit import PlansError
from meterkit.catalog import loads
from meterkit.decisions.keys import (
    HOOKS_SHARD,
    Keys,
    check_tokens,
    concurrency_field,
    meter_field,
    meter_token,
    rate_field,
    rate_token,
    route_name,
    shard_of,
)

KEYS = Keys("mk", 128)
DAY_MS = 86_400_000
CATALOG = loads("""
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}, tokens: {unit: token}}
routes:
  - {match: "POST /ask", consume: {requests: 1}, rate: 5/minute}
  - {match: "*", consume: {requests: 1}}
plans:
  free: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: 100/hour}}}
""")


def test_a_shard_is_of_the_bytes_of_a_name() -> None:
    assert shard_of("ada", 128) == crc32(b"ada") % 128
    assert {shard_of(f"{number}", 4) for number in range(50)} == {0, 1, 2, 3}


def test_keys_of_the_whole_store() -> None:
    assert (KEYS.meta, KEYS.events) == ("mk:meta", "mk:events")


def test_keys_of_a_shard() -> None:
    found = (
        *(KEYS.shard(7, "outbox"), KEYS.producer(7, "p"), KEYS.correction(7, "d"), KEYS.totals(7, "ada")),
        *(KEYS.turns(7), KEYS.notices(7), KEYS.audit(7), KEYS.audit_sums(7)),
    )
    names = ("outbox", "w:p", "r:d", "t:ada", "turns", "notices", "audit", "audit:sums")
    assert found == tuple(f"mk:{{7}}:{name}" for name in names)
    assert KEYS.hooks("due") == "mk:{0}:hooks:due"
    assert KEYS.hints(7, "due") == "mk:{7}:hints:due"
    assert HOOKS_SHARD == 0


def test_keys_of_a_day() -> None:
    day = 23_000
    for now_ms in (day * DAY_MS, (day + 1) * DAY_MS - 1):
        assert KEYS.delivered(7, now_ms) == f"mk:{{7}}:delivered:{day}"
        assert KEYS.batches(7, now_ms) == f"mk:{{7}}:batches:{day}"


def test_keys_of_a_stripe_customer_lie_in_its_own_shard() -> None:
    shard = crc32(b"cus_1") % 128
    assert KEYS.link("cus_1") == f"mk:{{{shard}}}:l:cus_1"
    assert KEYS.formers("cus_1") == f"mk:{{{shard}}}:f:cus_1"
    assert KEYS.beginning("cus_1") == f"mk:{{{shard}}}:b:cus_1"


def test_what_a_watch_has_found_lies_with_the_customer() -> None:
    assert KEYS.watched("ada", "0a1b") == f"mk:{{{shard_of('ada', 128)}}}:x:0a1b"


def test_an_event_is_known_by_customer_and_id() -> None:
    name = KEYS.event(7, "ada", "1")
    assert name == "mk:{7}:e:" + name.rpartition(":")[2]
    assert len(name.rpartition(":")[2]) == 32
    assert len({name, KEYS.event(7, "ada", "2"), KEYS.event(7, "bob", "1"), KEYS.event(7, "ad", "a1")}) == 4
    assert KEYS.event(7, "ada", "\udc80")  # What is no UTF-8 is known, too.


def test_a_job_is_known_by_its_id_in_the_shard_of_that() -> None:
    digest = blake2b(b"job_1", digest_size=16).hexdigest()
    assert KEYS.job("job_1") == f"mk:{{{shard_of(digest, 128)}}}:o:{digest}"
    assert KEYS.job("\udc80")  # What is no UTF-8 is known, too.


@pytest.mark.parametrize(("anonymous", "space"), [(False, ""), (True, "a")])
def test_keys_of_a_customer(*, anonymous: bool, space: str) -> None:
    found = KEYS.customer("ada", anonymous=anonymous)
    shard = f"mk:{{{crc32(b'ada') % 128}}}"
    assert found.shard == crc32(b"ada") % 128
    assert found.counters == f"{shard}:{space or 'c'}:ada"
    names = ("state", "totals", "grants", "ledger", "levels", "marks", "history", "corrections")
    for name, letter in zip(names, "stgjvihk", strict=True):
        assert getattr(found, name) == f"{shard}:{space}{letter}:ada"
    assert (found.dirty, found.unlinked, found.notices) == (
        f"{shard}:dirty",
        f"{shard}:unlinked",
        f"{shard}:notices",
    )


def test_fields_are_a_token_and_a_letter() -> None:
    assert meter_field("requests") == f"{meter_token('requests')}m"
    assert concurrency_field("requests") == f"{meter_token('requests')}n"
    assert rate_field("requests", 1_000, "x") == f"{rate_token('requests', 1_000, 'x')}r"
    tokens = [meter_token("a"), meter_token("b"), rate_token("a", 1, "x"), rate_token("a", 2, "x")]
    assert {len(token) for token in tokens} == {4}
    assert len(set(tokens)) == 4


def test_a_route_stands_for_its_method_and_path() -> None:
    asked, rest = CATALOG.routes
    assert route_name(asked) == "route POST /ask"
    assert route_name(rest).startswith("route * ")


def test_names_of_different_tokens_are_let_pass() -> None:
    check_tokens(CATALOG)


@pytest.mark.parametrize(
    ("meter", "limits", "what"),
    [
        # Names whose digests have the same 24 bits: found by trying.
        ("m1213842", "rate: 1/hour", "the meter spend and the meter m1213842"),
        (
            "m13330799",
            "rate: {limit: 1/day, algorithm: fixed-window}",
            "the fixed-window rate of spend per 86400000 ms and the fixed-window rate of m13330799",
        ),
    ],
)
def test_budgets_of_subjects_share_no_field(meter: str, limits: str, what: str) -> None:
    plans = f"""
schema: 1
currency: usd
default_plan: free
meters: {{{meter}: {{unit: request}}}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters: {{{meter}: {{{limits}}}}}
"""
    check_tokens(loads(plans))
    with pytest.raises(PlansError, match=f"plans.free.subjects: {what}.* would be counted as one"):
        check_tokens(loads(f"{plans}    subjects: {{user: {{budget: {{amount_cents: 5}}}}}}\n"))
