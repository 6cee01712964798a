"""meterkit: the middleware around the bare app, with one plans file per variant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meterkit import Caller, MeterKit, MeterMiddleware, identify
from meterkit.catalog import load
from peers.bare import CUSTOMER_HEADER, starlette_app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

PLANS = Path(__file__).resolve().parent.parent / "plans"


def metered(
    plans: str, redis_url: str, *, counts: bool = False, allots: bool = False, **settings: object
) -> ASGIApp:
    path = PLANS / plans
    sold = replace(load(path), allotment="250ms") if allots else path
    kit = MeterKit(sold, redis_url=redis_url, flush="off", **settings)
    if counts:
        kit.store.tally()  # As metrics_app does, and a kit where OpenTelemetry's API is installed.
    return MeterMiddleware(starlette_app(), kit=kit, identify=identify.header(CUSTOMER_HEADER.decode()))


def build_decide(redis_url: str) -> ASGIApp:
    return metered("decide.yaml", redis_url)


def build_settle(redis_url: str) -> ASGIApp:
    return metered("settle.yaml", redis_url)


def build_hot_decide(redis_url: str) -> ASGIApp:
    return metered("decide.yaml", redis_url, allots=True)


def build_hot_settle(redis_url: str) -> ASGIApp:
    return metered("settle.yaml", redis_url, allots=True)


def build_settle_with_metrics(redis_url: str) -> ASGIApp:
    return metered("settle.yaml", redis_url, counts=True)


def build_spend(redis_url: str) -> ASGIApp:
    return metered("spend.yaml", redis_url)


def build_subjects(redis_url: str) -> ASGIApp:
    kit = MeterKit(PLANS / "subjects.yaml", redis_url=redis_url, flush="off")
    named = identify.header(CUSTOMER_HEADER.decode())

    def who(scope: Scope) -> Caller | None:
        customer = named(scope)
        if not isinstance(customer, str):
            return None
        return Caller(customer, {"team": "red", "user": customer})

    return MeterMiddleware(starlette_app(), kit=kit, identify=who)


def build_three(redis_url: str) -> ASGIApp:
    return metered("three.yaml", redis_url)
