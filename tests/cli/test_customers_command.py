from __future__ import annotations

from pathlib import Path

import pytest

from drivers.command_line import Shell
from faults.inner_steps import failing
from meterkit import StoreError


def test_a_plan_that_was_set_is_taken_back(stored: Shell) -> None:
    stored.run("customers", "set-plan", "acme", "pro")
    assert stored.run("customers", "set-plan", "acme", "--clear", "--json").json["plan"] == "free"
    for asked in ((), ("pro", "--clear")):
        assert "give PLAN or --clear" in stored.run("customers", "set-plan", "acme", *asked).err


def test_numbers_are_read_as_in_the_plans_file(stored: Shell) -> None:
    words = ("customers", "override", "acme", "tokens")
    for text, read in (("included=010", 10), ("included=1_000", 1_000), ("overage={bill: {cap: 010}}", 10)):
        (found,) = stored.run(*words, text, "--json").json["overrides"]["tokens"].values()
        assert found in (read, {"bill": {"cap": read}})
    for text in ("1:30", "0x10"):
        refused = stored.run(*words, f"included={text}")
        assert (refused.code, f"found '{text}'" in refused.err) == (1, True)


def test_a_customer_is_set_up_listed_and_forgotten(stored: Shell) -> None:
    assert stored.run("customers", "set-plan", "acme", "pro").code == 0
    assert stored.run("customers", "link", "acme", "cus_1").code == 0
    assert stored.run("customers", "set-status", "acme", "past_due").code == 0
    assert stored.run("customers", "override", "acme", "tokens", "included=5_000").code == 0
    (found,) = stored.run("customers", "list", "--json").json
    assert found["access_since"].endswith("Z")
    names = ("customer", "plan", "status", "access", "stripe_customer", "overrides", "subscription")
    assert [found[name] for name in names] == [
        *("acme", "pro", "past_due", "grace", "cus_1", {"tokens": {"included": 5000}}, None)
    ]
    assert "cus_1" in stored.run("customers", "list").out
    assert stored.run("customers", "set-status", "acme", "none", "--json").json["status"] is None
    assert {} == stored.run("customers", "override", "acme", "tokens", "--clear", "--json").json["overrides"]
    done = stored.run("customers", "delete", "acme", "--json").json
    erased = {name: count for name, count in done["erased"].items() if count}
    # Each change of a status is told besides; of access, too.
    assert (done["deleted"], erased) == ("acme", {"state": 1, "link": 1, "history": 8, "notices": 4})
    assert [] == stored.run("customers", "list", "--json").json
    assert [] == stored.run("customers", "history", "acme", "--json").json


@pytest.mark.anyio
async def test_a_deletion_that_failed_is_repeated(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.customers.link("acme", "cus_1")
        with failing("a deletion goes on behind its script"), pytest.raises(StoreError):
            await kit.customers.delete("acme")
    done = stored.run("customers", "delete", "acme", "--json")
    assert (done.code, done.json["erased"]["link"]) == (0, 1), done.err
    assert stored.run("customers", "delete", "acme").code == 1


@pytest.mark.anyio
async def test_who_has_only_declined_e_mails_is_deleted(stored: Shell) -> None:
    async with stored.kit() as kit:
        await kit.notify.preferences("acme", {"credits.low": False})
    done = stored.run("customers", "delete", "acme", "--json")
    assert (done.code, done.json["erased"]["preferences"]) == (0, 1), done.err
    assert stored.run("customers", "delete", "acme").code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("set-plan", "acme", "gold"), 1, "meterkit: plan: found 'gold'; allowed are the plans free, pro"),
        (("set-status", "acme", "broke"), 1, "meterkit: status: found 'broke'; allowed are active,"),
        (("link", "acme", "42"), 1, "meterkit: Stripe customer: found '42'; allowed is an id like cus_123"),
        (("override", "acme", "tokens"), 2, "KEY=VALUE"),
        (("override", "acme", "--feature", "reports", "--clear"), 2, "--clear"),
        (("override", "acme", "--feature", "report"), 1, "did you mean 'reports'"),
        (("override", "acme", "--feature", "reports", "--until", "2001-01-01"), 1, "not in the future"),
        (
            ("override", "acme", "tokens", "overage={bill: {per: 1, amount_cents: 2}}"),
            1,
            "no Stripe key is set here: set METERKIT_STRIPE_API_KEY",
        ),
    ],
)
def test_what_is_refused_says_why(stored: Shell, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = stored.run("customers", *arguments)
    assert (code, "") == (done.code, done.out)
    assert message in done.err
    assert "Traceback" not in done.err


def test_links_of_a_file_are_made_but_for_refused_ones(stored: Shell, directory: Path) -> None:
    links = "\ufeffcustomer,stripe_customer\r\nacme,cus_1\r\n beta , cus_2\r\ngamma,cus_1\r\n"
    (directory / "links.csv").write_text(links, encoding="utf-8")
    done = stored.run("customers", "link", "--csv", "links.csv", "--json")
    assert (1, 2) == (done.code, done.json["linked"])
    assert ["gamma"] == [refused["customer"] for refused in done.json["refused"]]
    # F-127: which line that was.
    assert "links.csv:4: not linked: 'gamma', 'cus_1': " in done.err
    assert "links.csv:4" == done.json["refused"][0]["line"]
    assert "Stripe customer cus_1 is linked to customer 'acme' already" in done.err
    found = stored.run("customers", "list", "--json").json
    assert [("acme", "cus_1"), ("beta", "cus_2")] == [
        (customer["customer"], customer["stripe_customer"]) for customer in found
    ]


def test_links_from_stdin_can_be_repeated(stored: Shell) -> None:
    for _ in range(2):
        done = stored.run("customers", "link", "--csv", "-", stdin="acme,cus_1\n")
        assert (0, "linked 1, refused 0\n") == (done.code, done.out)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("acme,cus_1\nbeta\n", ":2: found 1 column; allowed are two columns, customer,stripe_customer"),
        ("customer,stripe_customer\nbeta,cus_2,EU\n", ":2: found 3 columns; allowed are two"),
        ("acme,cus_1\nbeta,\n", ":2: the column stripe_customer is empty; allowed are two"),
        ('acme,cus_1\n"beta,cus_2\n', ":2: the line is not CSV: unexpected end of data"),
        ("acme,cus_1\n\udcff,cus_2\n", " cannot be read: byte 11 is not UTF-8"),
    ],
)
def test_a_file_of_links_is_refused_whole_with_the_line(stored: Shell, lines: str, message: str) -> None:
    (stored.directory / "links.csv").write_bytes(lines.encode(errors="surrogateescape"))
    done = stored.run("customers", "link", "--csv", "links.csv")
    assert (done.code, done.err.startswith(f"meterkit: links.csv{message}")) == (1, True)
    assert ("column" in message) == ("no line of the file was linked" in done.err)
    assert stored.run("customers", "list", "--json").json == []


def test_a_file_that_is_not_there_is_named_once(shell: Shell) -> None:
    done = shell.run("customers", "link", "--csv", "links.csv")
    why = f"No such file or directory; looked for in {shell.directory}"
    assert (1, f"meterkit: links.csv cannot be read: {why}\n") == (done.code, done.err)


@pytest.mark.parametrize("entries", [["=5"], ["included=" + "9" * 5000], ["rate=" + "[" * 1500]])
def test_entries_that_cannot_be_read_are_refused(shell: Shell, entries: list[str]) -> None:
    done = shell.run("customers", "override", "acme", "tokens", *entries)
    assert (done.code, done.out, done.err.startswith("meterkit: override: ")) == (1, "", True)


def test_unlink_undoes_a_link(stored: Shell) -> None:
    assert stored.run("customers", "link", "acme", "cus_1", "--json").json["stripe_customer"] == "cus_1"
    assert stored.run("customers", "unlink", "acme", "--json").json["stripe_customer"] is None
    assert stored.run("customers", "show", "acme", "--json").json["stripe_customer"] is None
    assert stored.run("customers", "link", "acme", "cus_2", "--json").json["stripe_customer"] == "cus_2"


def test_features_and_ends_of_overrides(stored: Shell) -> None:
    """F-116: neither could be given."""
    given = stored.run(
        *("customers", "override", "acme", "tokens", "included=5_000", "--feature", "reports"),
        *("--until", "2031-07-01", "--json"),
    )
    assert given.code == 0
    assert given.json["overrides"] == {"tokens": {"included": 5000}}
    assert given.json["feature_overrides"] == {"reports": True}
    until = "2031-07-01T00:00:00Z"
    assert given.json["override_ends"] == {"tokens": until, "feature reports": until}
    shown = stored.run("customers", "show", "acme")
    assert "until 2031-07-01 00:00:00Z" in " ".join(shown.out.split())
    assert stored.run("usage", "acme", "--json").json["features"] == ["reports"]
    taken = stored.run("customers", "override", "acme", "--without", "reports", "--json").json
    assert (taken["feature_overrides"], taken["override_ends"]) == ({"reports": False}, {"tokens": until})
    done = stored.run("customers", "override", "acme", "--clear", "--json")
    cleared = done.json
    assert (cleared["feature_overrides"], cleared["overrides"]) == ({}, {"tokens": {"included": 5000}})
    assert done.err.endswith("meterkit customers override acme tokens --clear\n")
