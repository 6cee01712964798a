from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meterkit.cli.links import read_links
from meterkit.cli.notation import parse_entitlement
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from pathlib import Path

    from commands import Shell

UNKNOWN: dict[str, object] = {
    "customer": "acme",
    "plan": "free",
    "status": None,
    "access": "full",
    "stripe_customer": None,
    "overrides": {},
}


def test_an_unknown_customer_is_on_the_default_plan(stored: Shell) -> None:
    done = stored.run("customers", "show", "acme", "--json")
    assert (0, UNKNOWN) == (done.code, done.json)


def test_a_customer_is_set_up_listed_and_forgotten(stored: Shell) -> None:
    assert stored.run("customers", "set-plan", "acme", "pro").code == 0
    assert stored.run("customers", "link", "acme", "cus_1").code == 0
    assert stored.run("customers", "set-status", "acme", "past_due").code == 0
    assert stored.run("customers", "override", "acme", "tokens", "included=5_000").code == 0
    expected = {
        "customer": "acme",
        "plan": "pro",
        "status": "past_due",
        "access": "grace",
        "stripe_customer": "cus_1",
        "overrides": {"tokens": {"included": 5000}},
    }
    assert [expected] == stored.run("customers", "list", "--json").json
    assert "cus_1" in stored.run("customers", "list").out
    assert stored.run("customers", "set-status", "acme", "none", "--json").json["status"] is None
    assert {} == stored.run("customers", "override", "acme", "tokens", "--clear", "--json").json["overrides"]
    assert {"deleted": "acme"} == stored.run("customers", "delete", "acme", "--json").json
    assert [] == stored.run("customers", "list", "--json").json


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("set-plan", "acme", "gold"), 1, "meterkit: plan: found 'gold'; the plans are free, pro"),
        (("set-status", "acme", "broke"), 1, "meterkit: status: found 'broke'; allowed are active,"),
        (("link", "acme", "42"), 1, "meterkit: Stripe customer: found '42'; allowed is an id like cus_123"),
        (("link", "acme"), 2, "give CUSTOMER and STRIPE_CUSTOMER, or --csv FILE"),
        (("override", "acme", "tokens"), 2, "give KEY=VALUE"),
        (("override", "acme", "tokens", "included"), 1, "allowed is KEY=VALUE"),
        (("show", "a\nb"), 1, "meterkit: customer"),
        (("show",), 2, "Missing argument"),
    ],
)
def test_what_is_refused_says_why(stored: Shell, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = stored.run("customers", *arguments)
    assert (code, "") == (done.code, done.out)
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_override_that_cannot_be_read_is_refused_and_not_stored(stored: Shell) -> None:
    done = stored.run("customers", "override", "acme", "tokens", "incuded=5")
    assert done.code == 1
    assert "unknown key 'incuded'" in done.err
    assert UNKNOWN == stored.run("customers", "show", "acme", "--json").json


def test_links_are_read_from_a_file_and_the_rest_is_done_where_one_is_refused(
    stored: Shell, directory: Path
) -> None:
    (directory / "links.csv").write_text("customer,stripe_customer\nacme,cus_1\nbeta,cus_2\ngamma,cus_1\n")
    done = stored.run("customers", "link", "--csv", "links.csv", "--json")
    assert (1, 2) == (done.code, done.json["linked"])
    assert ["gamma"] == [refused["customer"] for refused in done.json["refused"]]
    assert "Stripe customer cus_1 is linked to customer 'acme' already" in done.err
    found = stored.run("customers", "list", "--json").json
    assert [("acme", "cus_1"), ("beta", "cus_2")] == [
        (customer["customer"], customer["stripe_customer"]) for customer in found
    ]


def test_links_come_from_stdin_too_and_repeating_them_is_no_error(stored: Shell) -> None:
    for _ in range(2):
        done = stored.run("customers", "link", "--csv", "-", stdin="acme,cus_1\n")
        assert (0, "linked 1, refused 0\n") == (done.code, done.out)


def test_a_file_of_links_is_refused_whole_with_the_line(directory: Path) -> None:
    path = directory / "links.csv"
    path.write_text("acme,cus_1\nbeta\n")
    with pytest.raises(MeterkitError, match=r"links\.csv:2: found 1 columns; allowed are two"):
        read_links(str(path))


def test_a_customer_named_like_the_header_is_linked_after_it(directory: Path) -> None:
    path = directory / "links.csv"
    path.write_text("\ufeffcustomer,stripe_customer\r\n\r\n customer , cus_1 \r\n", encoding="utf-8")
    assert [("customer", "cus_1")] == read_links(str(path))


def test_entitlements_are_in_the_notation_of_the_plans_file() -> None:
    entries = ["included=5_000", "rate=[100/hour, 5/second]", 'overage={"bill": {"cap": 7}}']
    expected = {"included": 5000, "rate": ["100/hour", "5/second"], "overage": {"bill": {"cap": 7}}}
    assert expected == parse_entitlement(entries)


@pytest.mark.parametrize("entries", [["included"], ["=5"], ["included="], ["a=1", "a=2"], ["rate=[1"]])
def test_entries_that_cannot_be_read_are_refused(entries: list[str]) -> None:
    with pytest.raises(MeterkitError, match=r"^override: "):
        parse_entitlement(entries)
