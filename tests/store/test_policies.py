"""The policies of a plan, in the order in which they are weighed."""

# Internals: a pure table of policies.

from __future__ import annotations

from typing import Literal

import pytest

from meterkit.catalog.models import QUANTITY_MAX, Entitlement, Meter, Overage, Rate
from meterkit.decisions.policies import ceiling_of, policies_of

DENY = Overage(mode="deny")


def meter(
    name: str = "requests", unit: str = "request", kind: Literal["counter", "gauge"] = "counter"
) -> Meter:
    return Meter(name=name, title=name, unit=unit, kind=kind, stripe=None, source=None, where={})


def entitlement(
    *rates: Rate, included: int | None = None, overage: Overage = DENY, concurrency: int | None = None
) -> Entitlement:
    return Entitlement(
        meter="requests",
        rates=rates,
        concurrency=concurrency,
        included=included,
        overage=overage,
        warn_at=(),
    )


def rate(limit: int, window_ms: int, window: str) -> Rate:
    return Rate(limit=limit, window_ms=window_ms, algorithm="sliding-window", burst=limit, window=window)


def test_policies_are_rates_then_the_period_then_concurrency() -> None:
    given = entitlement(
        rate(1000, 3_600_000, "1h"), rate(20, 1000, "1s"), included=10_000, overage=DENY, concurrency=4
    )
    found = [
        (one.name, one.kind, one.quota, one.window_s, one.quota_unit) for one in policies_of(given, meter())
    ]
    assert found == [
        ("requests-1h", "rate", 1000, 3600, None),
        ("requests-1s", "rate", 20, 1, None),
        ("requests-period", "period", 10_000, None, None),
        ("requests-concurrency", "concurrency", 4, None, "concurrent-requests"),
    ]


def test_a_unit_that_is_not_the_request_is_named() -> None:
    given = entitlement(rate(200_000, 18_000_000, "5h"), included=50_000)
    policies = policies_of(given, meter("output_tokens", "token"))
    assert [(policy.name, policy.quota_unit) for policy in policies] == [
        ("output_tokens-5h", "token"),
        ("output_tokens-period", "token"),
    ]


@pytest.mark.parametrize(
    ("included", "overage", "ceiling"),
    [
        (None, DENY, None),
        (0, DENY, 0),
        (100, Overage(mode="bill"), None),
        (100, Overage(mode="bill", cap=50), 150),
        (QUANTITY_MAX, Overage(mode="bill", cap=QUANTITY_MAX), QUANTITY_MAX),
    ],
)
def test_a_period_admits_included_and_cap(
    included: int | None, overage: Overage, ceiling: int | None
) -> None:
    given = entitlement(included=included, overage=overage)
    assert ceiling == ceiling_of(given)
    quotas = [policy.quota for policy in policies_of(given, meter())]
    assert quotas == ([] if ceiling is None else [ceiling])
