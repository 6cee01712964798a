"""What the demonstration asks of Stripe, over HTTP, as any other program would."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

__all__ = ["KEY", "Account"]

KEY: Final = "sk_test_demo"
_MINUTE_S: Final = 60
# Usage is stamped with a minute at most four minutes ahead.
_AHEAD_S: Final = 10 * _MINUTE_S


class Account:
    """An account at the emulator.

    Args:
        client: whose base address is the emulator's.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._since = _minute(time.time()) - _MINUTE_S

    async def add_customer(self, name: str) -> str:
        """Make a Stripe customer; its id."""
        return str((await self._post("/v1/customers", {"name": name}))["id"])

    async def add_meter(self, event_name: str) -> str:
        """Make a meter that adds up; its id."""
        made = await self._post(
            "/v1/billing/meters",
            {
                "display_name": event_name,
                "event_name": event_name,
                "default_aggregation[formula]": "sum",
            },
        )
        return str(made["id"])

    async def billed(self, meter_id: str, stripe_customer: str) -> int:
        """What Stripe has counted for a customer since this object was made."""
        response = await self._client.get(
            f"/v1/billing/meters/{meter_id}/event_summaries",
            params={
                "customer": stripe_customer,
                "start_time": self._since,
                "end_time": _minute(time.time()) + _AHEAD_S,
            },
        )
        response.raise_for_status()
        return sum(int(summary["aggregated_value"]) for summary in response.json()["data"])

    async def misbehave(self, **fault: str | int) -> None:
        """Have one of the next meter events go wrong."""
        (await self._client.post("/_emulator/faults", json=fault)).raise_for_status()

    async def _post(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        response = await self._client.post(path, data=form)
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found


def _minute(moment_s: float) -> int:
    return int(moment_s) // _MINUTE_S * _MINUTE_S
