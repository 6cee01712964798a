"""Fixtures for tests of an app that is metered: ``pytest_plugins = ["meterkit.testing.plugin"]``.

No entry point loads it: that would load meterkit into every run of pytest in its environment. ``memory://``
is one store for the process, so each kit has a key prefix of its own.
"""

from __future__ import annotations

import os
import sys
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import pytest

from meterkit.catalog import Catalog, load
from meterkit.kit import MeterKit
from meterkit.starlette import stripe_webhook
from meterkit.testing.emulator import StripeEmulator
from stripe_emulator import Clock

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDPOINT = "http://meterkit_kit/webhooks/stripe"
_SETTINGS = ("METERKIT_", "REDIS_URL", "STRIPE_")


@pytest.fixture
def meterkit_plans() -> str | os.PathLike[str] | Catalog:
    """The plans file: ``METERKIT_PLANS``, else ``plans.yaml``. Override it to test with another one."""
    return os.environ.get("METERKIT_PLANS") or "plans.yaml"


@pytest.fixture
def meterkit_clock() -> Clock:
    """The time of the kit, its store and the emulator: now, standing still until it is moved."""
    return Clock()


@pytest.fixture
def stripe_emulator(
    meterkit_plans: str | os.PathLike[str] | Catalog, meterkit_clock: Clock
) -> StripeEmulator:
    """A Stripe account with the meters of the plans file, which sells its plans, without customers."""
    emulator = StripeEmulator(clock=meterkit_clock)
    emulator.add_plans(meterkit_plans if isinstance(meterkit_plans, Catalog) else load(meterkit_plans))
    return emulator


@pytest.fixture
def meterkit_webhook_secret() -> str:
    """The signing secret of the kit's webhooks."""
    return f"whsec_{token_hex(16)}"


@pytest.fixture
def meterkit_kit(
    meterkit_plans: str | os.PathLike[str] | Catalog,
    meterkit_clock: Clock,
    meterkit_webhook_secret: str,
    stripe_emulator: StripeEmulator,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MeterKit]:
    """A kit with a store of its own, which delivers to the emulator when a test calls ``flush``.

    The emulator has a webhook endpoint of the kit: ``await stripe_emulator.deliver()`` queues the events, and
    ``await meterkit_kit.webhooks.work_off()`` processes them.

    The kit is not started: the app's lifespan does that, or ``async with meterkit_kit:``. No setting of the
    environment reaches it.
    """
    for name in list(os.environ):
        if name.startswith(_SETTINGS):
            monkeypatch.delenv(name)
    with stripe_emulator.running() as url:
        kit = MeterKit(
            meterkit_plans,
            clock=meterkit_clock,
            redis_url="memory://",
            key_prefix=f"test{token_hex(8)}",
            stripe_api_key="sk_test_emulator",
            stripe_api_base=url,
            stripe_webhook_secret=meterkit_webhook_secret,
            flush=False,
        )
        stripe_emulator.add_endpoint(_ENDPOINT, secret=meterkit_webhook_secret, app=stripe_webhook(kit))
        yield kit


@pytest.fixture(autouse=True)
def _memory_is_empty() -> Iterator[None]:
    """Nothing that a kit of the app itself has written to ``memory://`` reaches the next test."""
    yield
    memory: Any = sys.modules.get("meterkit.redis.memory")
    if memory is not None:
        memory.empty()
