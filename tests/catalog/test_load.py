from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivers.plans import free_plan
from meterkit.catalog import (
    BILLED_ON_SUCCESS,
    Anonymous,
    Billing,
    Catalog,
    Changes,
    Dunning,
    Entitlement,
    Meter,
    Overage,
    PlanGrant,
    Price,
    Rate,
    StripeEvent,
    load,
    loads,
)
from meterkit.errors import PlansError, Problem

GOOD = Path(__file__).parent / "good"
DAY_MS = 86_400_000
DENY = Overage(mode="deny")
BILL = Overage(mode="bill")
HEAD = "schema: 1\ncurrency: usd\ndefault_plan: free\n"


def sliding(limit: int, window_ms: int, window: str) -> Rate:
    return Rate(limit=limit, window_ms=window_ms, algorithm="sliding-window", burst=limit, window=window)


def entitlement(meter: str, *, included: int | None = None, overage: Overage = DENY) -> Entitlement:
    nothing: Any = {"rates": (), "concurrency": None, "warn_at": ()}
    return Entitlement(meter=meter, included=included, overage=overage, **nothing)


@pytest.fixture(scope="module")
def everything() -> Catalog:
    return load(GOOD / "everything.yaml")


def test_meters(everything: Catalog) -> None:
    names = ["requests", "input_tokens", "output_tokens", "large_output", "storage", "seats"]
    assert list(everything.meters) == names
    assert everything.meters["large_output"] == Meter(
        name="large_output",
        title="Large output",
        unit="token",
        kind="counter",
        stripe=StripeEvent(event_name="ai_large_output", report="overage"),
        source="output_tokens",
        where={"model": "*-large*"},
    )
    assert everything.meters["storage"] == Meter(
        name="storage", title="Storage", unit="byte", kind="gauge", stripe=None, source=None, where={}
    )


def test_a_plan_that_extends_another(everything: Catalog) -> None:
    pro, enterprise = everything.plans["pro"], everything.plans["enterprise"]
    assert (enterprise.name, enterprise.rank) == ("enterprise", 20)
    assert (enterprise.price, enterprise.trial_ms, enterprise.grants) == (pro.price, pro.trial_ms, pro.grants)
    assert enterprise.features == everything.features
    unlimited = replace(entitlement("requests", overage=BILL), is_unlimited=True)
    assert enterprise.entitlements["requests"] == unlimited
    assert enterprise.entitlements["output_tokens"] == pro.entitlements["output_tokens"]


def test_the_blocks_at_the_end_show_the_defaults(everything: Catalog) -> None:
    minimal = load(GOOD / "minimal.yaml")
    assert everything.billing == minimal.billing
    assert minimal.billing == Billing(
        charge_on=BILLED_ON_SUCCESS,
        sources=frozenset({"reported", "partial", "estimated"}),
        idempotency_header=None,
        portal_url=None,
        changes=Changes(
            upgrade="now", downgrade="period_end", over_limit="block_growth", allowance="prorated"
        ),
        late_usage="next_period",
        hold_invoice_ms=DAY_MS,
    )
    assert everything.dunning == minimal.dunning
    assert minimal.dunning == Dunning(
        grace_ms=7 * DAY_MS,
        attempts=3,
        restrict_to="free",
        suspend_after_ms=14 * DAY_MS,
        remind_ms=(1 * DAY_MS, 6 * DAY_MS, 13 * DAY_MS),
        debt="deny",
    )
    assert (minimal.enforcement, minimal.on_store_failure, minimal.headers) == ("on", "allow", "ietf")
    assert minimal.anonymous is None


def test_the_smallest_file() -> None:
    minimal = load(GOOD / "minimal.yaml")
    assert (minimal.currency, minimal.default_plan, minimal.routes) == ("eur", "free", ())
    free = minimal.plans["free"]
    assert (free.name, free.rank, free.trial_ms, free.seat_price) == ("free", 0, None, None)
    assert (free.features, free.grants) == (frozenset(), ())
    assert free.entitlements == {"requests": entitlement("requests")}


def test_a_route_says_otherwise_than_the_file() -> None:
    blocks = load(GOOD / "blocks.yaml")
    files, live, account = blocks.routes
    assert (files.enforcement, files.on_store_failure, files.headers) == ("shadow", "deny", "both")
    assert live.idempotency_header == "X-Request-Id"
    assert account.idempotency_header is None
    assert live.charge_on == {"success", "client_gone", "client_error"}
    assert blocks.dunning == Dunning(
        grace_ms=0,
        attempts=None,
        restrict_to="free",
        suspend_after_ms=14 * DAY_MS,
        remind_ms=(12 * 3_600_000, 5 * DAY_MS),
        debt="allow",
    )
    trials = {plan.key: (plan.trial_ms, plan.trial_without_card) for plan in blocks.plans.values()}
    assert (trials["free"], files.storage_meter) == ((14 * DAY_MS, "pause"), "disk")
    assert blocks.plans["free"].entitlements["disk"].included == 3 * 2**29


def test_several_rates_in_one_text_and_a_map_form() -> None:
    catalog = load(GOOD / "rates_only.yaml")
    entitlements = catalog.plans["standard"].entitlements
    rates = [(rate.limit, rate.window) for rate in entitlements["requests"].rates]
    assert rates == [(10, "1s"), (100, "5m"), (1000, "1d")]
    egress = entitlements["egress"].rates[0]
    assert (egress.limit, egress.algorithm) == (1_500_000_000, "fixed-window")
    proxies = ("10.0.0.0/8", "fd00::/8", "192.0.2.7", "unix")
    assert catalog.anonymous == Anonymous(plan="standard", by="ip", trusted_proxies=proxies)


def test_maps_merge_by_key_and_lists_and_scalars_replace() -> None:
    catalog = load(GOOD / "inheritance.yaml")
    base, middle, top = (catalog.plans[key] for key in ("base", "middle", "top"))
    assert [plan.name for plan in (base, middle, top)] == ["The base", "The middle one", "top"]
    assert middle.price == base.price
    assert top.price == Price(amount_cents=1000, interval="year", included_per="interval", stripe_price=None)
    assert (middle.trial_ms, top.trial_ms) == (14 * DAY_MS, None)
    assert middle.entitlements["requests"].rates == (sliding(20, 1000, "1s"),)
    assert middle.entitlements["requests"].warn_at == (80, 100)
    assert top.entitlements["requests"].included is None
    assert top.entitlements["requests"].overage == Overage(mode="bill", cap=10, per=10, amount_cents=3)
    assert middle.entitlements["seats"] == entitlement("seats", included=5)
    grant = PlanGrant(kind="meter", name="requests", quantity=100, priority=50, expires_ms=90 * DAY_MS)
    assert (base.grants, middle.grants) == ((grant,), ())
    assert top.features == {"export", "sso", "audit"}


@pytest.mark.parametrize(
    ("written", "included", "overage"),
    [
        ("{}", 0, BILL),
        ("{overage: bill}", 0, BILL),
        ("{overage: {bill: {cap: 7}}}", 0, Overage(mode="bill", cap=7)),
        ("{included: 5}", 5, DENY),
        ("{included: 5, overage: bill}", 5, BILL),
        ("{included: unlimited}", None, DENY),
        ("{included: unlimited, overage: bill}", None, BILL),
    ],
)
def test_defaults_of_a_billed_entitlement(written: str, included: int | None, overage: Overage) -> None:
    built = built_of("{unit: request, stripe: {event_name: requests}}", written)
    assert (included, overage) == (built.included, built.overage)


@pytest.mark.parametrize(("written", "included"), [("{}", None), ("{included: 5}", 5)])
def test_defaults_of_an_entitlement_of_a_meter_without_an_event(written: str, included: int | None) -> None:
    built = built_of("{unit: request}", written)
    assert (included, DENY) == (built.included, built.overage)


def built_of(meter: str, written: str) -> Entitlement:
    plans = free_plan(f"{{requests: {meter}}}", f"{{requests: {written}}}")
    return loads(plans).plans["free"].entitlements["requests"]


def test_meaning_changes_the_content_hash_spelling_does_not() -> None:
    meters = "meters: {requests: {unit: request}}\nroutes: [{match: 'GET   /a', consume: {requests: 1}}]\n"
    plan = "plans: {free: {price: {amount_cents: 0, interval: month}, meters: {requests: {rate: RATE}}}}\n"
    one = loads(HEAD + meters + plan.replace("RATE", "1_000/hour"), source="a.yaml")
    renamed = meters.replace("   ", " ")
    other = loads(plan.replace("RATE", "['1000 per 1 hours']") + HEAD + renamed, source="b")
    changed = loads(HEAD + meters + plan.replace("RATE", "1_001/hour"), source="a.yaml")
    assert one.content_hash == other.content_hash
    assert one.content_hash != changed.content_hash
    assert len(one.content_hash) == 16
    assert int(one.content_hash, 16) >= 0


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    text = (GOOD / "minimal.yaml").read_text()
    assert loads(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()) == loads(text)


def test_a_missing_file() -> None:
    cure = "name another by MeterKit(…) or --plans, or if these name none by METERKIT_PLANS"
    why = f"No such file or directory; looked for in {Path.cwd()}; {cure}"
    with pytest.raises(PlansError) as caught:
        load("nowhere/plans.yaml")
    problem = Problem("nowhere/plans.yaml", 0, 0, "", f"the plans file cannot be read: {why}")
    assert caught.value.problems == (problem,)
    assert str(caught.value) == f"nowhere/plans.yaml: the plans file cannot be read: {why}"


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(PlansError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "plans.yaml"
    path.write_bytes(b"# " + b"x" * 1024 * 1024)
    with pytest.raises(PlansError, match="has 1,048,577 bytes; allowed: at most 1,048,576"):
        load(path)
