from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from drivers.audited_kit import rows_in
from drivers.command_line import TIMEOUT_S, Shell, first_line
from drivers.delivery import lines_of
from drivers.plans import plans_text
from drivers.spools import spool_with
from meterkit import FlushReport, LateUsage
from meterkit.testing import StripeEmulator

pytestmark = pytest.mark.anyio

DONE: dict[str, object] = {
    **dict.fromkeys(("retried", "parked", "dead", "left"), 0),
    "why": "",
    "undelivered": [],
    "unsealed": [],
    "late": [],
    "spools": {"sent": 0, "refused": []},
}


@pytest.fixture
def delivering(stored: Shell, emulator: StripeEmulator) -> Iterator[Shell]:
    """A shell whose Stripe is the emulator; what is recorded is due after a tenth of a second."""
    with emulator.running() as url:
        stored.environment |= {
            "METERKIT_STRIPE_API_KEY": "sk_test_1",
            "METERKIT_STRIPE_API_BASE": url,
            "METERKIT_FLUSH_INTERVAL": "0.1",
        }
        yield stored


async def record(shell: Shell, quantity: int, *, linked: bool = True) -> None:
    async with shell.kit(flush_interval=0.1) as kit:
        if linked:
            await kit.customers.link("acme", "cus_1")
        await kit.record("acme", "tokens", quantity)


async def test_everything_is_delivered_and_counted(delivering: Shell, emulator: StripeEmulator) -> None:
    await record(delivering, 25)
    done = delivering.run("flush", "--all", "--json")
    assert (0, {"sealed": 1, "delivered": 1, "unlinked": [], **DONE}) == (done.code, done.json)
    assert emulator.accepted("cus_1", "ai_tokens") == 25
    again = delivering.run("flush", "--all")
    assert (0, "Nothing to deliver.\n") == (again.code, again.out)


async def test_a_flush_drains_the_audit_log(delivering: Shell, directory: Path) -> None:
    # F-127: with delivery by cron alone, it was never drained.
    url = f"sqlite:///{directory}/audit.db"
    delivering.environment["METERKIT_AUDIT_URL"] = url
    async with delivering.kit(audit_url=url) as kit:
        await kit.record("acme", "tokens", 25)
        admin, key = await kit.store.admin(), kit.store.keys.audit(kit.store.keys.customer("acme").shard)
        ((_, entry),) = await admin.ask(admin.client.xrange(key))
        # An entry younger than two seconds waits for the next flush.
        await admin.ask(admin.client.delete(key))
        await admin.ask(admin.client.xadd(key, entry, id="1-1"))
        assert delivering.run("flush").code == 0
        assert [row["quantity"] for row in rows_in(url)] == [25]


async def test_who_is_not_linked_is_named_and_is_nothing_left(delivering: Shell) -> None:
    await record(delivering, 25, linked=False)
    done = delivering.run("flush", "--all")
    assert done.code == 0
    assert "unlinked: acme has usage and no Stripe customer" in done.out


async def test_what_cannot_be_delivered_is_left_undone(delivering: Shell, emulator: StripeEmulator) -> None:
    await record(delivering, 25)
    emulator.fail_next("error", status=500, times=None)
    done = delivering.run("flush", "--all", "--timeout", "0.5", "--json")
    assert (1, 0, 1) == (done.code, done.json["delivered"], done.json["left"])
    emulator.clear_faults()
    assert delivering.run("flush", "--all").code == 0
    assert emulator.accepted("cus_1", "ai_tokens") == 25


@pytest.mark.parametrize("refused", ["meter", "key"])
async def test_a_flush_ends_where_only_an_operator_helps(
    delivering: Shell, emulator: StripeEmulator, refused: str
) -> None:
    await record(delivering, 25)
    if refused == "meter":
        emulator.reset()
        emulator.add_customer("cus_1")
    else:
        emulator.fail_next("error", status=401, times=None)
    began_s = time.monotonic()
    done = delivering.run("flush", "--all")
    assert time.monotonic() - began_s < 60  # It may wait 300 s.
    assert done.code == 1
    assert "refused: 1 intent, queued until you act: HTTP 40" in done.out
    assert "will be tried again" not in done.out
    assert "`meterkit outbox list --state queued`" in done.err
    emulator.clear_faults()
    if refused == "meter":
        emulator.add_meter("ai_tokens")
    again = delivering.run("flush", "--all", "--json")
    assert (again.code, again.json["delivered"], "blocked" in again.json) == (0, 1, False)


async def test_a_flush_with_a_refusal_still_retries_the_others(
    delivering: Shell, emulator: StripeEmulator, directory: Path
) -> None:
    plans = directory / "plans.yaml"
    meter = "requests: {unit: request}"
    billed = meter.replace("}", ", stripe: {event_name: api_requests, report: usage}}")
    plans.write_text(plans.read_text().replace(meter, billed))
    await record(delivering, 25)
    async with delivering.kit(flush_interval=0.1) as kit:
        await kit.record("acme", "requests", 3)
    emulator.reset()
    emulator.add_customer("cus_1")
    emulator.add_meter("api_requests")
    emulator.fail_next("error", status=500, event_name="api_requests", times=2)
    done = delivering.run("flush", "--all", "--json")
    assert (done.code, done.json["delivered"], done.json["left"]) == (1, 1, 1)
    assert list(done.json["blocked"].values()) == [1]
    assert emulator.accepted("cus_1", "api_requests") == 3


async def test_flush_exits_1_as_long_as_something_is_dead(
    delivering: Shell, emulator: StripeEmulator
) -> None:
    # F-87: 0 was as good to the tests.
    async with delivering.kit() as kit:
        for customer, stripe_customer, quantity in (("acme", "cus_gone", 25), ("zeta", "cus_1", 7)):
            await kit.customers.link(customer, stripe_customer, force=True)
            await kit.record(customer, "tokens", quantity)
    first = delivering.run("flush", "--all", "--json")
    assert (first.code, first.json["delivered"], first.json["dead"], first.json["left"]) == (1, 1, 1, 0)
    assert "acme" not in first.err  # The report tells of it, and no log besides.
    # Nothing is left to be tried, and it is still not delivered.
    again = delivering.run("flush", "--all")
    assert again.code == 1
    assert "dead: 25 of tokens of customer acme in 1 intent: " in again.out
    assert "zeta" not in again.out
    assert emulator.accepted("cus_1", "ai_tokens") == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_workers_deliver_once_between_them_and_stop(
    delivering: Shell, emulator: StripeEmulator, number: signal.Signals
) -> None:
    await record(delivering, 25)
    with delivering.running("worker") as one, delivering.running("worker", "--json") as other:
        deadline = time.monotonic() + TIMEOUT_S
        while emulator.accepted("cus_1", "ai_tokens") < 25 and time.monotonic() < deadline:
            time.sleep(0.05)  # noqa: ASYNC251 - The workers run elsewhere, and the emulator in a thread.
        for worker in (one, other):
            # A busy machine may have it say first that the store is slow.
            assert any(line.startswith("delivering from ") for line in worker.stderr)
            worker.send_signal(number)
        assert (0, 0) == (one.wait(TIMEOUT_S), other.wait(TIMEOUT_S))
    assert emulator.accepted("cus_1", "ai_tokens") == 25


def test_a_worker_reads_its_plans_file_again_after_sighup(delivering: Shell, directory: Path) -> None:
    plans = directory / "plans.yaml"
    written = plans.read_text()
    changed = written.replace("features: [reports]", "features: [reports, another]")
    with delivering.running("worker") as worker:
        said = worker.stderr
        assert said is not None
        assert any(line.startswith("delivering from ") for line in said)
        for text, expected in (
            (changed, "the plans file was reloaded"),
            (written + "nothing: of this\n", "the plans file is refused; the previous one stays active: "),
            (f"{changed}# As before.\n", "the plans file has not changed"),
        ):
            plans.write_text(text)
            worker.send_signal(signal.SIGHUP)
            assert any(line.startswith(expected) for line in said)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(TIMEOUT_S) == 0


def test_the_emulator_prints_its_settings_and_has_the_meters(shell: Shell) -> None:
    options = ("--port", "0", "--plans", "plans.yaml", "--forward-to", "http://127.0.0.1:9/v1/hooks")
    with shell.running("stripe", "emulator", *options) as process:
        name, _, url = first_line(process).partition("=")
        assert name == "export METERKIT_STRIPE_API_BASE"
        assert first_line(process) == "export METERKIT_STRIPE_API_KEY=sk_test_emulator"
        assert first_line(process).startswith("export METERKIT_STRIPE_WEBHOOK_SECRET=whsec_")
        answer = httpx.get(f"{url}/v1/billing/meters", headers={"authorization": "Bearer sk_test_emulator"})
        assert ["ai_tokens"] == [meter["event_name"] for meter in answer.json()["data"]]
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_the_emulator_of_lines_begins_with_what_sync_makes(directory: Path, shell: Shell) -> None:
    (directory / "plans.yaml").write_text(plans_text("invoice_lines"))
    with shell.running("stripe", "emulator", "--port", "0", "--plans", "plans.yaml") as process:
        shell.environment |= {
            "METERKIT_STRIPE_API_BASE": first_line(process).partition("=")[2],
            "METERKIT_STRIPE_API_KEY": "sk_test_1",
        }
        planned = shell.run("stripe", "sync", "--dry-run", "--json").json["lines"]
        assert {(line["what"], line["action"]) for line in planned} == {
            ("price", "is there"),
            ("product", "is there"),
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_the_emulator_command_advances_and_fails_payments(shell: Shell) -> None:
    """F-137: its clock and its customers' payments are in the hands of whoever can reach it."""
    options = ("--port", "0", "--clock", "2026-04-01T00:00:00Z", "--customer", "cus_ada")
    with shell.running("stripe", "emulator", *options) as process:
        url = first_line(process).partition("=")[2]
        with httpx.Client(base_url=url, auth=("sk_test_emulator", "")) as client:
            assert client.get("/_emulator/clock").json()["utc"] == "2026-04-01T00:00:00+00:00"
            client.post("/_emulator/customers/cus_ada", json={"card": "pm_card_visa"})
            price = {"unit_amount": "1000", "currency": "usd", "product_data[name]": "Pro"}
            made = client.post("/v1/prices", data={**price, "recurring[interval]": "month"}).json()
            sold = {"customer": "cus_ada", "items[0][price]": made["id"]}
            subscription = client.post("/v1/subscriptions", data=sold).json()["id"]
            client.post("/_emulator/customers/cus_ada", json={"payments": "fail"})
            moved = client.post("/_emulator/clock", json={"to": "2026-05-01T02:00:00Z"}).json()
            assert moved["utc"] == "2026-05-01T02:00:00+00:00"
            assert client.get(f"/v1/subscriptions/{subscription}").json()["status"] == "past_due"
            client.post("/_emulator/customers/cus_ada", json={"payments": "succeed"})
            client.post("/_emulator/clock", json={"advance": 3 * 86_400})
            assert client.get(f"/v1/subscriptions/{subscription}").json()["status"] == "active"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_a_taken_port_is_told_with_a_way_out(shell: Shell) -> None:
    with shell.running("stripe", "emulator", "--port", "0") as process:
        port = first_line(process).rpartition(":")[2]
        done = shell.run("stripe", "emulator", "--port", port)
        assert done.code == 2
        assert done.err.startswith(f"meterkit: port {port} cannot be opened: Address already in use;")


async def test_without_a_key_flush_all_sends_the_spools(stored: Shell, tmp_path: Path) -> None:
    # F-20k: the runbook's cure exited with wrong usage, and sent nothing.
    spools, url = tmp_path / "spools", f"sqlite:///{tmp_path}/audit.db"
    stored.environment |= {"METERKIT_SPOOL_DIR": str(spools), "METERKIT_AUDIT_URL": url}
    kit = stored.kit()
    file, of_other = (spool_with(one, spools, "tokens", 7) for one in (kit, stored.kit(key_prefix="other")))
    file.close()
    of_other.close()
    done = stored.run("flush", "--all")
    assert (0, False, True) == (done.code, file.path.exists(), of_other.path.exists())
    assert "settlements sent from spools of ended processes: 1\n" in done.out
    assert "unlinked 1\n" in done.out
    assert "unlinked: acme has usage and no Stripe customer" in done.out
    assert (
        "nothing is delivered, because no Stripe key is set; to deliver, set METERKIT_STRIPE_API_KEY\n"
        in done.err
    )
    # Without the app's prefix the cure of a left spool did nothing, and said nothing.
    why = f"it belongs to another store: {kit.store.address}, prefix other"
    assert f"spool not sent: {of_other.path}: {why}" in done.err
    assert stored.run("usage", "acme", "--json").json["meters"]["tokens"]["recorded"] == 7
    again = stored.run("flush", "--all", "--json")
    assert (0, {"sent": 0, "refused": []}) == (again.code, again.json["spools"])
    file.path.write_bytes(b"no spool")
    done = stored.run("flush", "--all")
    unread = f"spool left as it is: {file.path}: it cannot be read: it does not begin as a spool does"
    assert (done.code, unread in done.out) == (1, True)
    stored.environment["METERKIT_KEY_PREFIX"] = "other"
    assert "settlements sent from spools of ended processes: 1" in stored.run("flush", "--all").out


async def test_spools_that_cannot_be_read_are_left_and_said(delivering: Shell, directory: Path) -> None:
    await record(delivering, 25)
    delivering.environment["METERKIT_SPOOL_DIR"] = f"{directory}/plans.yaml"
    done = delivering.run("flush", "--all")
    left = f"spool left as it is: {directory}/plans.yaml: it cannot be read: Not a directory\n"
    assert (done.code, "delivered 1" in done.out, left in done.out) == (1, True, True), done.err


def test_late_usage_has_a_line_for_each_customer_and_period() -> None:
    may, june = "2031-05-01T00:00:00Z", "2031-06-01T00:00:00Z"
    found = [
        LateUsage(customer=customer, meter="tokens", quantity=quantity, period=period, is_billed=True)
        for customer, period, quantity in (
            ("acme", may, 5),
            ("acme", june, 7),
            ("bolt", june, 9),
            ("acme", may, 1),
        )
    ]
    billed = "the invoice of the open period bills it"
    assert lines_of(FlushReport(late=found), "late") == [
        f"late: usage of customer acme in the period from {may}: 5 of tokens, 1 of tokens: {billed}",
        f"late: usage of customer acme in the period from {june}: 7 of tokens: {billed}",
        f"late: usage of customer bolt in the period from {june}: 9 of tokens: {billed}",
    ]
