"""Stripe's rate limits: calls are spread below them, all calls and those of each endpoint."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

_BURST: Final = 5
# https://docs.stripe.com/rate-limits: in a sandbox 25 requests a second, live 100, and 25 of one endpoint. A
# method with a path is an endpoint; paths that differ in the id of an object alone are one.
_PER_ENDPOINT_S: Final = 20.0
_LIVE_PER_S: Final = 80.0


class CallPacer:
    """Delays the calls of one client, so that they stay below Stripe's limits.

    Args:
        is_sandbox: whether the limits of a sandbox hold.
    """

    def __init__(self, *, is_sandbox: bool) -> None:
        self._calls_per_s = _PER_ENDPOINT_S if is_sandbox else _LIVE_PER_S
        self._next: dict[str, float] = {}

    async def wait(self, endpoint: str) -> None:
        """Wait until a call is within the limits, of all calls and of those of this endpoint."""
        await asyncio.sleep(max(self._wait_s("", self._calls_per_s), self._wait_s(endpoint, _PER_ENDPOINT_S)))

    def _wait_s(self, name: str, calls_per_s: float) -> float:
        now = monotonic()
        at = max(now, self._next.get(name, now)) + 1 / calls_per_s
        self._next[name] = at
        return max(0.0, at - now - _BURST / calls_per_s)


_NAMESPACES: Final = frozenset(
    {
        "billing",
        "billing_portal",
        "checkout",
        "entitlements",
        "tax",
        "test_helpers",
    }
)
"""First parts of paths whose second part is the kind of an object: ``/v1/billing/meters``."""


def endpoint_of(method: str, target: str) -> str:
    """Name the endpoint of a request, for Stripe's limits: ``POST /v1/invoices/{id}/finalize``."""
    parts = target.partition("?")[0].strip("/").split("/")
    kind = 3 if len(parts) > 1 and parts[1] in _NAMESPACES else 2
    action = parts[kind + 1 : kind + 2]
    return (
        f"{method.upper()} /{'/'.join([*parts[:kind], *('{id}' for _ in parts[kind : kind + 1]), *action])}"
    )
