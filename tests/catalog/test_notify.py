"""``notify:`` in the plans file."""

from __future__ import annotations

from typing import Final

import pytest

from meterkit.catalog import loads
from meterkit.errors import PlansError

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {{requests: {{unit: request}}}}
notify: {notify}
plans: {{free: {{price: {{amount_cents: 0, interval: month}}}}}}
"""


@pytest.mark.parametrize("host", ["10.0.0.7", "[::1]", "localhost:8000"])
def test_a_private_address_may_be_written(host: str) -> None:
    notify = f"{{webhook: {{url: 'http://{host}/hook', events: [credits.low]}}}}"
    webhook = loads(PLANS.format(notify=notify)).notify.webhook
    assert webhook is not None
    assert webhook.url == f"http://{host}/hook"


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        (
            "{webhook: {url: 'https://a.example', events: [usage.treshold]}}",
            "did you mean 'usage.threshold'?",
        ),
        ("{webhook: {url: 'https://a.example', events: []}}", "at least one"),
        ("{webhook: {events: [credits.low]}}", "notify.webhook.url: webhook needs this key"),
        ("{webhook: {url: 'http://8.8.8.8', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'https://u:p@a.example', events: [credits.low]}}", "without a user"),
        ("{webhook: {url: 'https://a.example:x', events: [credits.low]}}", "starts with https://"),
        ("{email: {events: [credits.low]}}", "notify.email.from: email needs this key"),
        ('{email: {events: [credits.low], from: "a@b\\nBcc: c@d"}}', "such as billing@example.com"),
        ("{sms: {}}", "unknown key 'sms'; allowed in notify: webhook, email"),
    ],
)
def test_what_is_wrong_is_refused(notify: str, message: str) -> None:
    with pytest.raises(PlansError) as refused:
        loads(PLANS.format(notify=notify))
    assert message in str(refused.value)
