"""``notify:`` in the plans file."""

from __future__ import annotations

from typing import Final

import pytest

from meterkit.catalog import EmailChannel, Notify, WebhookChannel, loads
from meterkit.catalog.notifications import MESSAGE_EVENTS
from meterkit.catalog.notify import is_public, names_private_host
from meterkit.errors import PlansError
from meterkit.notify.events import EVENTS

PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters: {{requests: {{unit: request}}}}
notify: {notify}
plans: {{free: {{price: {{amount_cents: 0, interval: month}}}}}}
"""


def test_both_channels() -> None:
    both = (
        "{webhook: {url: 'https://a.example/h', events: [usage.threshold]},"
        " email: {events: [credits.low], from: a@b.example}}"
    )
    assert loads(PLANS.format(notify=both)).notify == Notify(
        webhook=WebhookChannel(url="https://a.example/h", events=("usage.threshold",)),
        email=EmailChannel(sender="a@b.example", events=("credits.low",)),
    )
    assert loads(PLANS.format(notify="{}")).notify == Notify()


def test_there_is_a_message_for_each_event() -> None:
    assert set(MESSAGE_EVENTS) == set(EVENTS)


@pytest.mark.parametrize("host", ["10.0.0.7", "127.0.0.1:8000", "[::1]", "localhost:8000", "192.168.1.1"])
def test_a_private_address_may_be_written(host: str) -> None:
    notify = f"{{webhook: {{url: 'http://{host}/hook', events: [credits.low]}}}}"
    webhook = loads(PLANS.format(notify=notify)).notify.webhook
    assert webhook is not None
    assert webhook.url == f"http://{host}/hook"


@pytest.mark.parametrize(
    ("address", "is_so"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d822", True),  # 93.184.216.34, behind NAT64.
        ("64:ff9b::169.254.169.254", False),
        ("64:ff9b:1::10.0.0.7", False),
        ("2002:a00:7::", False),  # 10.0.0.7, by 6to4.
        ("::10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("fec0::1", False),
        ("224.0.0.1", False),
        ("ff0e::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_an_address_that_leads_to_the_own_network_is_not_public(address: str, is_so: bool) -> None:
    assert is_public(address) == is_so
    assert names_private_host(address) == (not is_so)


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        (
            "{webhook: {url: 'https://a.example', events: [usage.treshold]}}",
            "did you mean 'usage.threshold'?",
        ),
        (
            "{webhook: {url: 'https://a.example', events: [usage]}}",
            "allowed: usage.threshold, usage.spike, storage.over",
        ),
        ("{webhook: {url: 'https://a.example', events: []}}", "at least one"),
        ("{webhook: {events: [credits.low]}}", "notify.webhook.url: webhook needs this key"),
        ("{webhook: {url: 'http://a.example', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'http://8.8.8.8', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'ftp://10.0.0.7', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'https://u:p@a.example', events: [credits.low]}}", "without a user"),
        ("{webhook: {url: 'https://a.example/#f', events: [credits.low]}}", "without a user"),
        ("{webhook: {url: 'https://', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'https://a.example:0', events: [credits.low]}}", "starts with https://"),
        ("{webhook: {url: 'https://a.example:x', events: [credits.low]}}", "starts with https://"),
        ("{email: {events: [credits.low]}}", "notify.email.from: email needs this key"),
        ("{email: {events: [credits.low], from: 'a@b, c@d'}}", "such as billing@example.com"),
        ('{email: {events: [credits.low], from: "a@b\\nBcc: c@d"}}', "such as billing@example.com"),
        ("{sms: {}}", "unknown key 'sms'; allowed in notify: webhook, email"),
    ],
)
def test_what_is_wrong_is_refused(notify: str, message: str) -> None:
    with pytest.raises(PlansError) as refused:
        loads(PLANS.format(notify=notify))
    assert message in str(refused.value)
