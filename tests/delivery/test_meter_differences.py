"""What a plans file expects of the meters at Stripe, compared with a list of them over HTTP."""
# Internals: a pure table of meters at Stripe.

from __future__ import annotations

import httpx
import pytest

from drivers.delivery import CATALOG
from meterkit.stripe.meters import meter_differences
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio


async def test_meters_that_do_not_take_what_is_sent_are_named() -> None:
    # F-53
    emulator = StripeEmulator()
    emulator.add_meter("api_requests")
    key = {"authorization": "Bearer sk_test_1"}
    async with emulator.serve() as url, httpx.AsyncClient(base_url=url, headers=key) as http:
        form = {
            "event_name": "ai_tokens",
            "display_name": "tokens",
            "default_aggregation[formula]": "sum",
            "customer_mapping[event_payload_key]": "user_id",
            "customer_mapping[type]": "by_id",
            "value_settings[event_payload_key]": "amount",
        }
        made = (await http.post("/v1/billing/meters", data=form)).json()
        at_stripe = (await http.get("/v1/billing/meters")).json()["data"]
        first, second, third = meter_differences(CATALOG, at_stripe)
        assert first.startswith(f"meter tokens: the meter {made['id']} at Stripe has customer_mapping")
        assert "value_settings.event_payload_key amount; what is sent has value" in second
        assert third == "meter pages: Stripe has no active meter with the event name pdf_pages"
        emulator.add_meter("pdf_pages")
        await http.post(f"/v1/billing/meters/{made['id']}/deactivate")
        emulator.add_meter("ai_tokens")
        assert meter_differences(CATALOG, (await http.get("/v1/billing/meters")).json()["data"]) == []
