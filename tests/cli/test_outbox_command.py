"""``meterkit outbox``: what is sealed and not delivered, listed and seen to."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from drivers.command_line import TIMEOUT_S, Shell
from drivers.redrives import kill_message, kill_webhook, queue_webhook, recorded
from drivers.webhooks import PLANS
from faults.refusals import eventually
from meterkit import Intent
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def intent(stored: Shell) -> AsyncGenerator[Intent]:
    """A dead intent of acme's, whom Stripe did not know and knows by now."""
    async with recorded(stored) as (kit, emulator):
        await kit.flush(everything=True)
        emulator.add_customer("cus_acme")
        (intent,) = await kit.outbox.list()
        yield intent


async def test_what_is_dead_is_listed_shown_and_redriven(stored: Shell, intent: Intent) -> None:
    listed = stored.run("outbox", "list")
    assert listed.code == 1
    assert all(word in listed.out for word in (intent.identifier[:8], "dead", "acme", "tokens", "25"))
    assert all(words in listed.out for words in ("No such", "customer: 'cus_acme'"))
    as_json = stored.run("outbox", "list", "--state", "dead", "--customer", "acme", "--json").json
    assert [one["identifier"] for one in as_json] == [intent.identifier]
    shown = stored.run("outbox", "show", intent.identifier)
    assert (shown.code, "Stripe customer  cus_acme" in shown.out) == (0, True)
    doctor = stored.run("doctor")
    assert "meterkit outbox list" in doctor.out
    redriven = stored.run("outbox", "redrive", "--all", "--reason", "it is there now")
    assert redriven.code == 0
    assert redriven.out == f"redriven: 25 of tokens of customer acme ({intent.identifier})\n"
    assert stored.run("flush", "--all").code == 0
    empty = stored.run("outbox", "list")
    assert (empty.code, empty.out) == (0, "")
    assert "The outbox is empty." in empty.err
    history = stored.run("customers", "history", "acme", "--json").json
    assert (history[-1]["kind"], history[-1]["after"]) == ("intent", "queued: it is there now")
    assert history[-1]["cause"].startswith("operator")


async def test_what_is_parked_waits_and_what_is_refused_is_said(stored: Shell, intent: Intent) -> None:
    refused = stored.run("outbox", "park", intent.identifier, "nobody", "--json")
    assert (refused.code, refused.json["parked"]) == (1, [])
    assert [one["intent"] for one in refused.json["refused"]] == [intent.identifier, "nobody"]
    assert "is dead: only queued intents can be parked" in refused.err
    assert stored.run("outbox", "redrive", intent.identifier).code == 0
    parked = stored.run("outbox", "park", intent.identifier, "--reason", "a wrong price")
    assert (parked.code, parked.out.startswith("parked: 25 of tokens")) == (0, True)
    # What a person has parked is redriven by name alone.
    left = stored.run("outbox", "redrive", "--all")
    assert (left.code, left.out) == (0, "")
    assert "1 were parked by hand and stay parked: name them" in left.err
    parked = stored.run("outbox", "list", "--json")
    (listed,) = parked.json
    assert (parked.code, listed["state"], listed["why"]) == (1, "parked", "parked by hand: a wrong price")
    assert stored.run("outbox", "redrive", intent.identifier).out.startswith("redriven: 25 of tokens")
    assert stored.run("outbox", "redrive").code == 2
    assert stored.run("outbox", "redrive", "a", "--all").code == 2


@pytest.mark.dear("waits ten seconds for a call that is not answered")
async def test_what_is_being_sent_is_still_to_send(stored: Shell) -> None:
    async with recorded(stored) as (kit, emulator):
        emulator.add_customer("cus_acme")
        emulator.fail_next("hang")
        flush = asyncio.create_task(kit.flush(everything=True))
        await eventually(lambda: any(one.path.endswith("/meter_events") for one in emulator.requests))
        rows = [re.split("  +", line.strip()) for line in stored.run("usage", "acme").out.splitlines()]
        (header,) = [row for row in rows if row[0] == "meter"]
        (tokens,) = [row for row in rows if row[0] == "tokens"]
        assert tokens[header.index("to send")] == "25"
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush


async def test_dropping_wants_a_reason_and_a_yes(stored: Shell, intent: Intent) -> None:
    assert stored.run("outbox", "drop", intent.identifier).code == 2
    nobody = stored.run("outbox", "drop", intent.identifier, "--reason", "billed by hand")
    assert (nobody.code, "give --yes" in nobody.err) == (1, True)
    done = stored.run_at_terminal("outbox", "drop", intent.identifier, "--reason", "x", answer="n")
    assert (done.code, "25 of tokens of customer acme" in done.err) == (1, True)
    assert stored.run("outbox", "list").code == 1
    done = stored.run_at_terminal("outbox", "drop", intent.identifier, "--reason", "x", answer="y")
    assert (done.code, "25 of tokens of customer acme" in done.err) == (0, True)
    assert stored.run("outbox", "list").code == 0
    tokens = stored.run("usage", "acme", "--json").json["meters"]["tokens"]
    assert (tokens["dead"], tokens["recorded"]) == (25, 25)


async def test_what_is_given_up_is_listed_and_tried_again(stored: Shell) -> None:
    nobody = stored.run("webhooks", "list")
    assert (nobody.code, nobody.out) == (0, "")
    assert nobody.err == "No sync is dead; none is waiting.\n"
    async with stored.kit() as kit:
        for name in ("cus_a", "cus_b"):
            await kill_webhook(kit, name, f"{name} is linked to another customer")
    listed = stored.run("webhooks", "list")
    assert listed.code == 1
    assert "cus_a is linked to another customer" in listed.out
    assert "none is waiting" in listed.err
    as_json = stored.run("webhooks", "list", "--json")
    assert [entry["stripe_customer"] for entry in as_json.json["dead"]] == ["cus_a", "cus_b"]
    assert (as_json.json["waiting"], as_json.json["alarms"]) == (0, {})
    one = stored.run("webhooks", "redrive", "cus_a", "cus_else")
    assert (one.code, one.out) == (1, "retried: 1\n")
    assert "not dead, so not retried: 1" in one.err
    rest = stored.run("webhooks", "redrive", "--json")
    assert (rest.code, rest.json) == (0, {"redriven": 1})
    assert stored.run("webhooks", "list", "--json").json["waiting"] == 2


async def test_the_worker_works_off_webhooks(stored: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(PLANS)
    emulator = StripeEmulator(automatic_webhooks=False)
    emulator.add_price(1000, price_id="price_pro")
    emulator.add_customer("cus_acme")
    emulator.add_payment_method("cus_acme")
    with emulator.running() as url:
        stored.environment |= {"METERKIT_STRIPE_API_KEY": "sk_test_1", "METERKIT_STRIPE_API_BASE": url}
        async with stored.kit() as kit:
            await kit.customers.link("acme", "cus_acme")
            form = {"customer": "cus_acme", "items[0][price]": "price_pro"}
            key = {"Authorization": "Bearer sk_test_1"}
            async with httpx.AsyncClient(headers=key) as client:
                assert (await client.post(f"{url}/v1/subscriptions", data=form)).status_code == 200
            await queue_webhook(kit, "cus_acme")
            with stored.running("worker") as worker:
                async with asyncio.timeout(TIMEOUT_S):
                    while (await kit.customers.get("acme")).plan != "pro":  # noqa: ASYNC110
                        await asyncio.sleep(0.05)  # The worker runs elsewhere.
                worker.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(worker.wait, TIMEOUT_S) == 0


async def test_dead_messages_are_listed_and_redriven(stored: Shell) -> None:
    none = stored.run("notify", "list")
    assert (none.code, none.out) == (0, "")
    assert "no message is waiting or dead" in none.err
    async with stored.kit() as kit:
        for name in ("msg_a", "msg_b"):
            await kill_message(kit, name, "acme", "the receiver answers 500", event="credits.low")
        listed = stored.run("notify", "list")
        assert listed.code == 1
        for part in ("msg_a", "webhook", "credits.low", "acme", "dead", "the receiver answers 500"):
            assert part in listed.out
        one = stored.run("notify", "redrive", "msg_a", "msg_c")
        assert (one.code, one.out) == (1, "sent again: 1\n")
        assert "not dead, so not retried: 1" in one.err
        as_json = stored.run("notify", "list", "--json").json
        assert [(entry["id"], entry["state"]) for entry in as_json] == [
            ("msg_a", "waiting"),
            ("msg_b", "dead"),
        ]


async def test_a_preview_needs_no_store(stored: Shell) -> None:
    shown = stored.run("notify", "preview", "credits.low")
    assert shown.code == 0
    assert '"type": "credits.low"' in shown.out
    assert "Subject: 96 ai credits left" in shown.out
    unknown = stored.run("notify", "preview", "credits")
    assert unknown.code == 1
    assert "found 'credits'; allowed are usage.threshold" in unknown.err
