"""``meterkit import stripe``, ``customers link`` and ``delete`` look at Stripe (F-111)."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from drivers.command_line import InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.webhooks import PLANS
from meterkit.testing import StripeEmulator


@pytest.fixture
def emulator() -> StripeEmulator:
    emulator = StripeEmulator(automatic_webhooks=False)
    emulator.add_price(1000, price_id="price_pro")
    return emulator


@pytest.fixture
def shell(directory: Path, store_url: str, emulator: StripeEmulator) -> Generator[Shell]:
    """A shell beside an account in which Ada and Bob pay for ``pro``; their ids are their addresses."""
    (directory / "plans.yaml").write_text(PLANS)
    with emulator.running() as url:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {STRIPE_KEY}"}) as client:
            for customer in ("ada", "bob"):
                emulator.add_customer(f"cus_{customer}")
                emulator.add_payment_method(f"cus_{customer}")
                given: Any = {"email": f"{customer}@example.org"}
                client.post(f"/v1/customers/cus_{customer}", data=given).raise_for_status()
                given = {"customer": f"cus_{customer}", "items[0][price]": "price_pro"}
                client.post("/v1/subscriptions", data=given).raise_for_status()
        settings = {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": STRIPE_KEY}
        yield InProcessShell(directory, METERKIT_REDIS_URL=store_url, **settings)


def test_all_are_linked_and_on_their_plans(shell: Shell) -> None:
    tried = shell.run("import", "stripe", "--id-from", "email", "--dry-run")
    # F-22a: it was not listed who gets which plan.
    assert tried.code == 0
    for name in ("ada", "bob"):
        line = next(line for line in tried.out.splitlines() if f"cus_{name}" in line).split()
        assert f"{name}@example.org" in line
        assert "pro" in line
    listed = shell.run("import", "stripe", "--id-from", "email", "--dry-run", "--json").json["customers"]
    both = [("ada@example.org", "pro"), ("bob@example.org", "pro")]
    assert [(one["customer"], one["plan"]) for one in listed] == both
    assert "would be linked: 2; linked before: 0" in tried.err
    assert shell.run("customers", "list", "--json").json == []
    done = shell.run("import", "stripe", "--id-from", "email", "--json")
    assert (done.code, done.json["linked"], done.json["misfits"]) == (0, 2, [])
    found = shell.run("customers", "list", "--json").json
    assert [(one["customer"], one["plan"]) for one in found] == both
    again = shell.run("import", "stripe", "--id-from", "email")
    assert "linked: 0; linked before: 2" in again.err


def test_who_does_not_fit_is_listed_with_the_reason(directory: Path, shell: Shell) -> None:
    (directory / "ids.csv").write_text("customer,stripe_customer\nada,cus_ada\neve,cus_eve\n")
    done = shell.run("import", "stripe", "--csv", "ids.csv")
    assert done.code == 1
    assert "nothing names its customer" in done.out
    assert "Stripe has no such customer" in done.out
    assert "linked: 1; linked before: 0; without a subscription or an id: 0; do not fit: 2" in done.err
    assert shell.run("customers", "show", "ada", "--json").json["plan"] == "pro"


def test_what_cannot_be_read_is_refused(directory: Path, shell: Shell) -> None:
    (directory / "twice.csv").write_text("ada,cus_1\nbob,cus_1\n")
    for arguments, message in (
        (("--id-from", "phone"), "allowed are metadata.KEY and email"),
        (("--csv", "none.csv"), "none.csv cannot be read"),
        (("--csv", "twice.csv"), "'cus_1' is linked to both 'ada' and 'bob'"),
    ):
        done = shell.run("import", "stripe", *arguments)
        assert (done.code, done.out) == (1, "")
        assert message in done.err
    del shell.environment["METERKIT_STRIPE_API_KEY"]
    done = shell.run("import", "stripe")
    assert (done.code, "METERKIT_STRIPE_API_KEY" in done.err) == (2, True)


def test_a_link_reads_the_subscription(directory: Path, shell: Shell) -> None:
    """F-111."""
    assert shell.run("customers", "link", "ada", "cus_ada", "--json").json["plan"] == "pro"
    (directory / "links.csv").write_text("bob,cus_bob\n")
    done = shell.run("customers", "link", "--csv", "links.csv")
    assert (done.code, done.out) == (0, "linked 1, refused 0\n")
    assert shell.run("customers", "show", "bob", "--json").json["plan"] == "pro"


def test_a_link_to_an_unknown_stripe_customer_is_refused(directory: Path, shell: Shell) -> None:
    """F-206: each line of a file is named, and the rest is linked."""
    refused = shell.run("customers", "link", "carol", "cus_typo")
    assert (refused.code, refused.out) == (1, "")
    assert "customer 'carol' is not linked to Stripe customer cus_typo: Stripe has no such" in refused.err
    assert "--force" in refused.err
    (directory / "links.csv").write_text("carol,cus_typo\nbob,cus_bob\n")
    done = shell.run("customers", "link", "--csv", "links.csv", "--json")
    assert (done.code, done.json["linked"]) == (1, 1)
    assert [one["line"] for one in done.json["refused"]] == ["links.csv:1"]
    forced = shell.run("customers", "link", "carol", "cus_typo", "--force", "--json")
    assert (forced.code, forced.json["stripe_customer"]) == (0, "cus_typo")
    found = shell.run("doctor", "--json")
    assert "these customers are linked to Stripe customers that do not exist: carol (cus_typo)" in found.out


@pytest.mark.anyio
async def test_damaged_customers_are_named_and_others_linked(directory: Path, shell: Shell) -> None:
    async with shell.kit() as kit:
        keys, admin = kit.store.keys.customer("ada"), await kit.store.admin()
        await admin.ask(admin.client.hset(keys.state, "data", "x"))
        await admin.ask(admin.client.pexpire(keys.state, 600_000))
    (directory / "links.csv").write_text("ada,cus_ada\nbob,cus_bob\n")
    done = shell.run("customers", "link", "--csv", "links.csv", "--json")
    assert (done.code, done.json["linked"]) == (1, 1)
    assert [one["line"] for one in done.json["refused"]] == ["links.csv:1"]
    assert "the record of customer 'ada' cannot be read" in done.err


def test_during_an_outage_links_are_made_with_force_only(
    directory: Path, shell: Shell, emulator: StripeEmulator
) -> None:
    """A file asks Stripe once: the looks of all further lines are queued."""
    emulator.fail_next("error", status=503, path="*", times=None)
    (directory / "links.csv").write_text("ada,cus_ada\nbob,cus_bob\n")
    refused = shell.run("customers", "link", "--csv", "links.csv")
    assert (refused.code, refused.out) == (1, "linked 0, refused 2\n")
    assert "links.csv:1: not linked: 'ada', 'cus_ada': " in refused.err
    assert "links.csv:2: not linked: 'bob', 'cus_bob': Stripe does not answer" in refused.err
    assert refused.err.count("--force") == 2
    done = shell.run("customers", "link", "--csv", "links.csv", "--force")
    assert (done.code, done.out) == (0, "linked 2, refused 0, to be read later 2\n")
    assert "customer 'ada' is linked to Stripe customer cus_ada, but its subscription" in done.err
    assert not any("cus_bob" in str(one.path) for one in emulator.requests[4:])
    emulator.clear_faults()
    assert shell.run("customers", "link", "bob", "cus_bob", "--json").json["plan"] == "pro"


def test_a_subscriber_is_deleted_with_cancel_only(shell: Shell) -> None:
    """F-112."""
    shell.run("customers", "link", "ada", "cus_ada")
    refused = shell.run("customers", "delete", "ada")
    assert refused.code == 1
    assert "which is active" in refused.err
    assert "(--cancel)" in refused.err
    done = shell.run("customers", "delete", "ada", "--cancel")
    assert (done.code, done.out.startswith("deleted ada: ")) == (0, True)
    assert shell.run("customers", "list", "--json").json == []
