"""``meterkit import stripe``: who is linked, who does not fit, and the exit code (F-111)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.command_line import InProcessShell, Shell
from drivers.delivery import STRIPE_KEY
from drivers.webhooks import PLANS
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@contextmanager
def business(directory: Path, store_url: str, *customers: str) -> Generator[tuple[Shell, str]]:
    """A shell beside an account in which customers pay for ``pro``; their ids are their addresses."""
    (directory / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator(automatic_webhooks=False)
    emulator.add_price(1000, price_id="price_pro")
    with emulator.running() as url:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {STRIPE_KEY}"}) as client:
            for customer in customers:
                emulator.add_customer(f"cus_{customer}")
                emulator.add_payment_method(f"cus_{customer}")
                given: Any = {"email": f"{customer}@example.org"}
                client.post(f"/v1/customers/cus_{customer}", data=given).raise_for_status()
                given = {"customer": f"cus_{customer}", "items[0][price]": "price_pro"}
                client.post("/v1/subscriptions", data=given).raise_for_status()
        settings = {"METERKIT_STRIPE_API_BASE": url, "METERKIT_STRIPE_API_KEY": STRIPE_KEY}
        yield InProcessShell(directory, METERKIT_REDIS_URL=store_url, **settings), url


def test_all_are_linked_and_on_their_plans(directory: Path, store_url: str) -> None:
    with business(directory, store_url, "ada", "bob") as (shell, _):
        tried = shell.run("import", "stripe", "--id-from", "email", "--dry-run")
        # F-22a: it was not listed who gets which plan.
        assert tried.code == 0
        for name in ("ada", "bob"):
            line = next(line for line in tried.out.splitlines() if f"cus_{name}" in line).split()
            assert f"{name}@example.org" in line
            assert "pro" in line
        listed = shell.run("import", "stripe", "--id-from", "email", "--dry-run", "--json").json["customers"]
        assert [(one["customer"], one["plan"]) for one in listed] == [
            ("ada@example.org", "pro"),
            ("bob@example.org", "pro"),
        ]
        assert "would be linked: 2; linked before: 0" in tried.err
        assert shell.run("customers", "list", "--json").json == []
        done = shell.run("import", "stripe", "--id-from", "email", "--json")
        assert (done.code, done.json["linked"], done.json["misfits"]) == (0, 2, [])
        found = shell.run("customers", "list", "--json").json
        assert [(one["customer"], one["plan"]) for one in found] == [
            ("ada@example.org", "pro"),
            ("bob@example.org", "pro"),
        ]
        again = shell.run("import", "stripe", "--id-from", "email")
        assert "linked: 0; linked before: 2" in again.err


def test_who_does_not_fit_is_listed_with_the_reason(directory: Path, store_url: str) -> None:
    with business(directory, store_url, "ada", "bob") as (shell, _):
        (directory / "ids.csv").write_text("customer,stripe_customer\nada,cus_ada\neve,cus_eve\n")
        done = shell.run("import", "stripe", "--csv", "ids.csv")
        assert done.code == 1
        assert "nothing names its customer" in done.out
        assert "Stripe has no such customer" in done.out
        assert "linked: 1; linked before: 0; without a subscription or an id: 0; do not fit: 2" in done.err
        assert shell.run("customers", "show", "ada", "--json").json["plan"] == "pro"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--id-from", "phone"), "allowed are metadata.KEY and email"),
        (("--csv", "none.csv"), "none.csv cannot be read"),
        (("--csv", "twice.csv"), "'cus_1' is given to 'ada' and 'bob'"),
    ],
)
def test_what_cannot_be_read_is_refused(
    directory: Path, store_url: str, arguments: tuple[str, ...], message: str
) -> None:
    (directory / "twice.csv").write_text("ada,cus_1\nbob,cus_1\n")
    with business(directory, store_url) as (shell, _):
        done = shell.run("import", "stripe", *arguments)
        assert (done.code, done.out) == (1, "")
        assert message in done.err


def test_without_a_key_it_is_said_which_setting_is_missing(stored: Shell) -> None:
    done = stored.run("import", "stripe")
    assert done.code == 2
    assert "METERKIT_STRIPE_API_KEY" in done.err
