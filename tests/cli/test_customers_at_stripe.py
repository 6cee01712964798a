"""``meterkit customers link`` and ``delete`` look at Stripe."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from drivers.command_line import InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.webhooks import PLANS
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def business(directory: Path, store_url: str) -> Generator[tuple[Shell, StripeEmulator]]:
    """A shell beside an account in which ``cus_ada`` and ``cus_bob`` pay for ``pro``."""
    (directory / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator(automatic_webhooks=False)
    emulator.add_price(1000, price_id="price_pro")
    with emulator.running() as url:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {STRIPE_KEY}"}) as client:
            for customer in ("cus_ada", "cus_bob"):
                emulator.add_customer(customer)
                emulator.add_payment_method(customer)
                given = {"customer": customer, "items[0][price]": "price_pro"}
                client.post("/v1/subscriptions", data=given).raise_for_status()
        settings = {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": STRIPE_KEY}
        yield InProcessShell(directory, METERKIT_REDIS_URL=store_url, **settings), emulator


def test_a_link_reads_the_subscription(directory: Path, store_url: str) -> None:
    """F-111."""
    with business(directory, store_url) as (shell, _):
        assert shell.run("customers", "link", "ada", "cus_ada", "--json").json["plan"] == "pro"
        (directory / "links.csv").write_text("bob,cus_bob\n")
        done = shell.run("customers", "link", "--csv", "links.csv")
        assert (done.code, done.out) == (0, "linked 1, refused 0\n")
        assert shell.run("customers", "show", "bob", "--json").json["plan"] == "pro"


def test_a_link_to_an_unknown_stripe_customer_is_refused(directory: Path, store_url: str) -> None:
    """F-206: each line of a file is named, and the rest is linked."""
    with business(directory, store_url) as (shell, _):
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
        assert "Stripe does not have the customers that these are linked to: carol (cus_typo)" in found.out


def test_during_an_outage_links_are_made_with_force_only(directory: Path, store_url: str) -> None:
    """A file asks Stripe once: the looks of all further lines are queued."""
    with business(directory, store_url) as (shell, emulator):
        emulator.fail_next("error", status=503, path="*", times=None)
        (directory / "links.csv").write_text("ada,cus_ada\nbob,cus_bob\n")
        refused = shell.run("customers", "link", "--csv", "links.csv")
        assert (refused.code, refused.out) == (1, "linked 0, refused 2\n")
        assert "links.csv:1: not linked: 'ada', 'cus_ada': " in refused.err
        assert "links.csv:2: not linked: 'bob', 'cus_bob': Stripe does not answer" in refused.err
        assert refused.err.count("--force") == 2
        done = shell.run("customers", "link", "--csv", "links.csv", "--force")
        assert (done.code, done.out) == (0, "linked 2, refused 0, not read yet 2\n")
        assert "customer 'ada' is linked to Stripe customer cus_ada, but its subscription" in done.err
        assert not any("cus_bob" in str(one.path) for one in emulator.requests[4:])
        emulator.clear_faults()
        assert shell.run("customers", "link", "bob", "cus_bob", "--json").json["plan"] == "pro"


def test_a_subscriber_is_deleted_with_cancel_only(directory: Path, store_url: str) -> None:
    """F-112."""
    with business(directory, store_url) as (shell, _):
        shell.run("customers", "link", "ada", "cus_ada")
        refused = shell.run("customers", "delete", "ada")
        assert refused.code == 1
        assert "which is active" in refused.err
        assert "(--cancel)" in refused.err
        done = shell.run("customers", "delete", "ada", "--cancel")
        assert (done.code, done.out.startswith("deleted ada: ")) == (0, True)
        assert shell.run("customers", "list", "--json").json == []
