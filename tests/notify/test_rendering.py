"""What e-mails say: of each event, in the language of the customer, by templates; and by which server."""
# Internals: pure tables of texts and addresses.

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from drivers.messages import PLANS
from drivers.plans import plans_text
from meterkit.catalog import loads
from meterkit.catalog.notify_values import MESSAGE_EVENTS
from meterkit.notify.courier import make_message
from meterkit.notify.mail import parse_smtp_url
from meterkit.notify.messages import make_sample
from meterkit.notify.rendering import Renderer

CATALOG = loads(PLANS.format(url="http://127.0.0.1/hook"))


def said(
    event: str, folder: Path | None = None, *, locale: str | None = None, name: str | None = "Ada"
) -> tuple[str, ...]:
    message = make_message("email", event, make_sample(event, CATALOG))
    found = Renderer(lambda: CATALOG, folder).render(message, locale=locale, name=name)
    return found.subject, found.text, found.html


@pytest.mark.parametrize("event", MESSAGE_EVENTS)
def test_each_event_has_a_subject_and_whole_sentences(event: str) -> None:
    subject, text, html = said(event)
    assert subject
    assert "Subject" not in text
    assert text.startswith("Hello Ada,\n\n")
    assert text.rstrip().endswith((".", "!"))
    assert "\n\n\n" not in text
    assert "  " not in text
    assert "<p>Hello Ada,</p>" in html
    assert "Hello,\n" in said(event, name=None)[1]


def test_amounts_days_sizes_and_paces_are_as_people_write_them() -> None:
    subject, text, _ = said("payment.failed")
    assert subject == "Your payment of $29.00 failed"
    assert "It will be tried again on 24 Nov 2026." in text
    assert "That is 15 times the last four weeks." in said("usage.spike")[1]
    _, text, html = said("storage.over")
    assert "- backups: 9.5 GB\n- documents: 2.5 GB\n\nFrom 28 Nov 2026 on you cannot add files.\n" in text
    assert "- backups: 9.5 GB<br>- documents: 2.5 GB</p>" in html
    assert "Your usage from 1 Oct 2026 to 31 Oct 2026" == said("period.summary")[0]


def test_what_is_spent_is_written_as_money() -> None:
    plans = PLANS.format(url="http://127.0.0.1/hook")
    first = plans.index("    price:")
    catalog = loads(plans[:first] + "    budget: {amount_cents: 5000}\n" + plans[first:])

    def told(event: str, **more: Any) -> str:
        found = make_message("email", event, replace(make_sample(event, CATALOG), **more))
        return Renderer(lambda: catalog, None).render(found, locale=None, name=None).text

    half = told("usage.threshold", meter="spend", used=25_123_400, included=50_000_000)
    assert "you have spent $25.1234 of your budget of $50.00 until" in half
    summary = told("period.summary", meters={"spend": {"used": 1_500_000, "overage": 0, "before": 0}})
    assert "- Spend: $1.50; $0.00 in the period before" in summary
    spike = told("usage.spike", meter="spend", used=36_400_000, usual=500_000, used_cents=None)
    assert "Spend: this hour you have spent $36.40. Usually it is $0.50." in spike
    assert "you spend $8.064. That is 15 times the last four weeks." in spike


def test_messages_name_meters_as_invoices_do() -> None:
    named = PLANS.replace("{{unit", "{{name: Calls made, unit")
    catalog = loads(named.format(url="http://127.0.0.1/hook"))

    def told(event: str) -> tuple[str, str]:
        found = make_message("email", event, make_sample(event, CATALOG))
        rendered = Renderer(lambda: catalog, None).render(found, locale=None, name=None)
        return rendered.subject, rendered.text

    subject, text = told("usage.threshold")
    assert subject == "Calls made: 80 % used"
    assert "Calls made: you have used 8,000 of the 10,000 requests that your plan includes until" in text
    subject, text = told("usage.spike")
    assert subject == "Unusual usage: Calls made"
    assert "Calls made: this hour you have used 12,000 requests." in text


@pytest.mark.parametrize(("access", "then"), [("grace", "limited"), ("restricted", "suspended")])
def test_a_reminder_says_what_happens_next(access: str, then: str) -> None:
    sample: Any = make_sample("dunning.reminder", CATALOG)
    message = make_message("email", "dunning.reminder", replace(sample, access=access))
    found = Renderer(lambda: CATALOG, None).render(message, locale=None, name=None)
    assert f"Please pay before 22 Nov 2026, or your access will be {then}." in found.text


def test_a_reminder_of_an_invoice_that_was_sent_names_no_payment() -> None:
    """Stripe attempts none: "your payment has failed 0 times, first on 15 Nov 2026"."""
    sample: Any = make_sample("dunning.reminder", CATALOG)
    for since, words in ((sample.failed_at, "has been unpaid since 15 Nov 2026"), (None, "is unpaid")):
        unpaid = replace(sample, failures=0, failed_at=since)
        message = make_message("email", "dunning.reminder", unpaid)
        found = Renderer(lambda: CATALOG, None).render(message, locale=None, name=None)
        assert f"an invoice {words}. Please pay before 22 Nov 2026" in found.text
        assert "failed" not in found.text


SOLD: dict[str, Any] = {"plan": "pro", "plan_before": "pro", "seats": 10, "seats_before": 10}
TWO: dict[str, Any] = {"addons": {"storage_pack": 2}, "addons_before": {"storage_pack": 2}}
NEXT: dict[str, Any] = {
    "pending_at": datetime(2026, 12, 1, tzinfo=UTC),
    "pending_plan": "pro",
    "pending_seats": 10,
}
HAS = "your plan is Pro. It has 10 seats and these add-ons: 2 Extra storage."


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"plan_before": "free", "seats": 1, "addons": {"exports": 1}},
            ["your plan is Pro from 21 Nov 2026 on. It has 1 seat and these add-ons: 1 Exports."],
        ),
        (
            {"seats": 0, "addons": {"exports": 1, "call_pack": 2}},
            ["your plan is Pro. From 21 Nov 2026 on it has these add-ons: 1 Exports, 2 call_pack."],
        ),
        (
            {"addons_before": {"exports": 1}},
            ["your plan is Pro. From 21 Nov 2026 on it has 10 seats and no add-ons."],
        ),
        (
            {**TWO, **NEXT, "pending_addons": {"storage_pack": 1}},
            [HAS, "From 1 Dec 2026 on it has these add-ons: 1 Extra storage."],
        ),
        (
            {**TWO, **NEXT, "pending_addons": {}, "pending_seats": 5},
            [HAS, "From 1 Dec 2026 on it has 5 seats and no add-ons."],
        ),
        (
            {**TWO, **NEXT, "pending_plan": "team", "cancel_at": NEXT["pending_at"]},
            [HAS, "On 1 Dec 2026 it changes to Team plan.", "Your subscription ends on 1 Dec 2026."],
        ),
        (
            {**NEXT, "pending_plan": "team", "pending_seats": 5, "status": "past_due"},
            ["your plan is Pro. It has 10 seats.", "On 1 Dec 2026 it changes to Team plan with 5 seats."],
        ),
        (
            {"seats": 0, "seats_before": 0, **NEXT, "pending_seats": None},
            ["your plan is Pro.", "On 1 Dec 2026 it changes."],
        ),
    ],
)
def test_a_changed_subscription_names_what_changes(changed: dict[str, Any], expected: list[str]) -> None:
    plans = plans_text("addon_shop").replace("rank: 10", "name: Pro\n    rank: 10")
    catalog = loads(plans.replace("rank: 5", "name: Team plan\n    rank: 5"))
    sample: Any = make_sample("subscription.changed", catalog)
    assert sample.addons == {"exports": 1}
    event = replace(sample, **{**SOLD, "addons": {}, **changed})
    message = make_message("email", "subscription.changed", event)
    found = Renderer(lambda: catalog, None).render(message, locale=None, name=None)
    assert found.text.rstrip().split("\n\n")[1:] == expected
    assert all(f"<p>{paragraph}</p>" in found.html for paragraph in expected)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("1|size", "1 byte"),
        ("1000|size", "1 kB"),
        ("999500|size", "1 MB"),
        ("999999|size", "1 MB"),
        ("12340000|size", "12.3 MB"),
        ("2345000000000000000|size", "2345 PB"),
        ("times(14, 10)", "1.4"),
        ("times(100, 10)", "10"),
        ("times(123456, 10)", "12,346"),
    ],
)
def test_a_size_has_three_digits_and_a_pace_two(tmp_path: Path, written: str, shown: str) -> None:
    (tmp_path / "storage.over.txt").write_text(f"Subject: {{{{ {written} }}}}\n\nx")
    assert shown == said("storage.over", tmp_path)[0]


def test_a_folder_overrides_by_locale(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    (tmp_path / "credits.low.txt").write_text("Subject: ours\n\nfew")
    (tmp_path / "de" / "credits.low.txt").write_text("Subject: wenig\n\n{{ balance|quantity }} übrig")
    (tmp_path / "de" / "credits.low.html").write_text("<i>{{ customer }}</i>")
    assert said("credits.low", tmp_path)[0] == "ours"
    assert said("credits.low", tmp_path, locale="fr")[0] == "ours"
    assert said("credits.low", tmp_path, locale="../de")[0] == "ours"
    for locale in ("de", "de-AT"):
        assert said("credits.low", tmp_path, locale=locale) == ("wenig", "96 übrig\n", "<i>acme</i>")
    assert said("trial.ending", tmp_path, locale="de") == said("trial.ending")


@pytest.mark.parametrize("template", ["Subject: {{ balanse }}\n\nx", "no subject", "{% if %}"])
def test_a_bad_template_is_replaced(template: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "credits.low.txt").write_text(template)
    assert said("credits.low", tmp_path) == said("credits.low")
    assert f"a template of {tmp_path} for credits.low fails; the built-in one is used" in caplog.text


def test_a_missing_folder_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert said("credits.low", tmp_path / "template") == said("credits.low")
    assert (
        f"there is no folder {tmp_path}/template of templates, so the built-in ones are used" in caplog.text
    )


def test_a_name_makes_no_header_and_no_markup(tmp_path: Path) -> None:
    assert "&lt;b&gt;Ada &amp; Co&lt;/b&gt;" in said("credits.low", name="<b>Ada & Co</b>")[2]
    (tmp_path / "credits.low.txt").write_text("Subject: to {{ name }}\n\nx")
    assert said("credits.low", tmp_path, name="Ada Lovelace\x0bBcc: eve")[0] == "to Ada Lovelace Bcc: eve"


@pytest.mark.parametrize(
    ("url", "port", "more"),
    [
        ("smtp://mail.example", 587, {}),
        ("smtp://mail.example:25", 25, {}),
        ("smtp://ada:p%40ss@mail.example", 587, {"start_tls": True, "username": "ada", "password": "p@ss"}),
        ("smtp://ada:pass@10.0.0.7", 587, {"username": "ada", "password": "pass"}),
        ("smtps://ada:pass@mail.example", 465, {"use_tls": True, "username": "ada", "password": "pass"}),
    ],
)
def test_a_password_goes_to_a_public_address_over_tls_only(url: str, port: int, more: dict[str, Any]) -> None:
    host = "10.0.0.7" if "10.0.0.7" in url else "mail.example"
    assert parse_smtp_url(url) == {"hostname": host, "port": port, "use_tls": False, **more}
