"""Events reach a receiver of webhooks and a mailbox: once per cause and channel, retried, or dead."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from socket import AF_INET, AF_INET6, IPPROTO_TCP, SOCK_STREAM
from typing import Any
from urllib.parse import urlsplit

import pytest
from standardwebhooks import Webhook

from drivers.health_findings import findings, looked_at
from drivers.messages import (
    NOW,
    OTHER_SECRET,
    PLANS,
    SECRET,
    Mailbox,
    Receiver,
    contact,
    courier,
    kit_of,
    mailbox,
    pass_over,
    receiver,
    receiving_server,
)
from drivers.process_metrics import told
from faults.refusals import eventually
from meterkit import Contact, MeterKit, MeterkitError
from meterkit.catalog import loads
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio


async def test_an_event_is_posted_once_and_signed_by_each_secret(store_url: str) -> None:
    clock = Clock(NOW)
    async with (
        receiver() as hook,
        kit_of(store_url, clock, url=hook.url, notify_secret=f"{SECRET},{OTHER_SECRET}") as kit,
    ):
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "webhook", "webhook")
        ((headers, body),) = hook.posts
        assert json.loads(body) == {
            "type": "usage.threshold",
            "timestamp": "2031-06-10T12:00:30Z",
            "data": {
                "id": json.loads(body)["data"]["id"],
                "customer": "acme",
                "meter": "requests",
                "percent": 50,
                "used": 5,
                "included": 10,
                "period_start": "2031-06-01T00:00:00Z",
                "period_end": "2031-07-01T00:00:00Z",
                "at": "2031-06-10T12:00:30Z",
            },
        }
        assert headers["webhook-id"].startswith("msg_")
        assert "." not in headers["webhook-id"]
        at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        assert at == NOW
        signed = [Webhook(secret).sign(headers["webhook-id"], at, body) for secret in (SECRET, OTHER_SECRET)]
        assert headers["webhook-signature"] == " ".join(signed)
        assert {"webhook": [], "email": []} == await kit.notify.list()


@pytest.mark.dear("a day of tries")
async def test_a_receiver_down_for_a_day_gets_all_once(hook: Receiver, kit: MeterKit, clock: Clock) -> None:
    hook.status = 503
    for customer in ("acme", "bolt", "core"):
        await kit.record(customer, "requests", 5)
    for _ in range(24):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(hours=1))
    tries = hook.ids
    assert len(set(tries)) == 3
    # At once, 5 seconds, 5 and 30 minutes later, but looked at each hour; then 2, 5 and 10 hours later.
    assert len(tries) == 3 * 7
    hook.posts.clear()
    hook.status = 200
    for _ in range(4):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(hours=4))
    assert sorted(hook.ids) == sorted(set(tries))


async def test_a_mail_server_down_for_a_day_gets_each_mail_once(store_url: str, clock: Clock) -> None:
    async with mailbox() as box:
        url = box.url
    async with kit_of(store_url, clock, smtp_url=url) as kit:
        for customer in ("acme", "bolt", "core"):
            await kit.record(customer, "requests", 5)
        for _ in range(24):
            await pass_over(kit, "email")
            clock.advance(timedelta(hours=1))
        kept = (await kit.notify.list())["email"]
        assert [("waiting", 7)] * 3 == [(one.state, one.attempts) for one in kept]
        assert {"the SMTP server does not accept it: SMTPConnectError"} == {one.why for one in kept}
        async with mailbox(urlsplit(url).port or 0) as box:
            for _ in range(4):
                await pass_over(kit, "email")
                clock.advance(timedelta(hours=4))
        assert sorted(f"<{one.id}@example.com>" for one in kept) == sorted(
            str(mail["Message-ID"]) for mail in box.mails
        )
        reached = sorted(str(mail["To"].addresses[0].addr_spec) for mail in box.mails)
        assert reached == ["acme@example.org", "bolt@example.org", "core@example.org"]


async def test_after_three_days_a_message_is_dead_until_it_is_redriven(
    hook: Receiver, kit: MeterKit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    await kit.record("acme", "requests", 5)
    for _ in range(11):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(hours=6))
    clock.advance(timedelta(hours=5))
    await pass_over(kit, "webhook")
    assert ["waiting"] == [one.state for one in (await kit.notify.list())["webhook"]]
    clock.advance(timedelta(hours=1))
    await pass_over(kit, "webhook")
    (dead,) = (await kit.notify.list())["webhook"]
    assert (dead.state, dead.why) == ("dead", "the receiver answers 500")
    assert f"meterkit notify redrive {dead.id}" in caplog.text
    hook.posts.clear()
    hook.status = 200
    await pass_over(kit, "webhook")
    assert (hook.posts, await kit.notify.redrive("msg_other"), await kit.notify.redrive()) == ([], 0, 1)
    await pass_over(kit, "webhook")
    assert (hook.ids, (await kit.notify.list())["webhook"]) == ([dead.id], [])


def percents_by_customer(hook: Receiver) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for _, body in hook.posts:
        data = json.loads(body)["data"]
        found.setdefault(data["customer"], []).append(data["percent"])
    return found


@pytest.mark.parametrize(
    ("refused", "sent"), [(0, [50, 100]), (1, [50, 50, 100]), (5, [50, 50, 50, 50, 100, 50, 100])]
)
async def test_a_customers_messages_are_sent_in_their_order(
    hook: Receiver, kit: MeterKit, clock: Clock, refused: int, sent: list[int]
) -> None:
    customers = ["acme", "bolt", "core", "dusk"]
    for _ in range(2):
        for customer in customers:
            await kit.record(customer, "requests", 5)
        clock.advance(timedelta(seconds=1))
    hook.refuses = lambda body: (
        len(percents_by_customer(hook)[json.loads(body)["data"]["customer"]]) <= refused
    )
    for delay_s in (5, 300, 1_800, 7_200):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(seconds=delay_s + 1))
    await pass_over(kit, "webhook")
    assert percents_by_customer(hook) == dict.fromkeys(customers, sent)


async def test_a_message_that_keeps_failing_holds_others_for_an_hour(
    hook: Receiver, kit: MeterKit, clock: Clock
) -> None:
    for _ in range(2):
        await kit.record("acme", "requests", 5)
        clock.advance(timedelta(seconds=1))
    hook.refuses = lambda body: json.loads(body)["data"]["percent"] == 50
    for delay_s in (5, 300, 1_800, 0):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(seconds=delay_s + 1))
    assert percents_by_customer(hook) == {"acme": [50, 50, 50, 50, 100]}


async def test_a_message_that_was_held_back_has_used_no_attempt(
    hook: Receiver, kit: MeterKit, clock: Clock
) -> None:
    for _ in range(2):
        await kit.record("acme", "requests", 5)
        clock.advance(timedelta(seconds=1))
    hook.status = 503
    for delay_s in (5, 300, 1_800, 0):
        await pass_over(kit, "webhook")
        clock.advance(timedelta(seconds=delay_s + 1))
    assert percents_by_customer(hook) == {"acme": [50, 50, 50, 50, 100]}
    assert sorted(one.attempts for one in (await kit.notify.list())["webhook"]) == [1, 4]


async def test_a_message_that_nobody_sent_for_days_is_dead(
    box: Mailbox, mailing: MeterKit, clock: Clock
) -> None:
    await mailing.record("acme", "requests", 5)
    await courier(mailing, "email").collect()
    clock.advance(timedelta(hours=73, seconds=1))
    await courier(mailing, "email").deliver()
    (dead,) = (await mailing.notify.list())["email"]
    assert (dead.state, dead.why, box.mails) == ("dead", "it waited for more than 72 hours", [])
    await mailing.notify.redrive()
    await courier(mailing, "email").deliver()
    assert len(box.mails) == 1


@pytest.mark.each_store
async def test_messages_wait_in_the_shards_of_their_customers(store_url: str, clock: Clock) -> None:
    customers = ["acme", "bolt", "core", "dusk", "echo", "fern"]
    async with receiver() as hook, kit_of(store_url, clock, url=hook.url, shards=64) as kit:
        hook.status = 500
        for customer in customers:
            await kit.record(customer, "requests", 5)
        await pass_over(kit, "webhook")
        kept = (await kit.notify.list())["webhook"]
        assert [one.state for one in kept] == ["waiting"] * len(customers)
        admin, keys = await kit.store.admin(), kit.store.keys
        for customer in customers:
            key = keys.shard(keys.customer(customer).shard, "messages:webhook:due")
            assert await admin.ask(admin.client.zcard(key)) == 1
        await kit.customers.delete("fern")
        clock.advance(timedelta(days=4))
        await pass_over(kit, "webhook")
        dead = [one.id for one in (await kit.notify.list())["webhook"] if one.state == "dead"]
        assert len(dead) == len(customers) - 1
        hook.posts.clear()
        hook.status = 200
        assert (await kit.notify.redrive(dead[0]), await kit.notify.redrive()) == (1, len(dead) - 1)
        await pass_over(kit, "webhook")
        assert (sorted(hook.ids), (await kit.notify.list())["webhook"]) == (sorted(dead), [])


async def test_a_retry_after_of_days_is_taken_for_one(hook: Receiver, kit: MeterKit, clock: Clock) -> None:
    hook.status, hook.headers = 503, {"retry-after": f"{2 * 86_400}"}
    await kit.record("acme", "requests", 5)
    await pass_over(kit, "webhook")
    for seconds, posts in ((86_399, 1), (1, 2)):
        clock.advance(timedelta(seconds=seconds))
        await pass_over(kit, "webhook")
        assert len(hook.posts) == posts


@pytest.mark.parametrize(
    ("refusal", "state"), [("550 no such user", "dead"), ("451 try again later", "waiting")]
)
async def test_a_bounced_address_is_dead(box: Mailbox, mailing: MeterKit, refusal: str, state: str) -> None:
    box.refusal = refusal
    await mailing.record("acme", "requests", 5)
    await pass_over(mailing, "email")
    (kept,) = (await mailing.notify.list())["email"]
    assert (kept.state, kept.why) == (state, f"the address is refused: {refusal[:3]}")


async def test_f316_an_encoded_word_in_an_address_is_refused_and_said(
    store_url: str, box: Mailbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Python's e-mail package decoded it, so the mail went to another address."""
    contact = Contact("=?utf-8?q?eve=40example.org=2C?=@example.com")
    async with kit_of(store_url, clock, smtp_url=box.url, reach=lambda _: contact) as kit:
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "email")
    assert [] == box.mails
    assert (
        "is dead: the contact's address is not a single e-mail address without encoded words" in caplog.text
    )


@pytest.mark.parametrize(
    ("reached", "states"),
    [
        (Contact("ada@example.org\r\nBcc: eve@example.org"), ["dead"]),
        (Contact("ada@example.org, eve@example.org"), ["dead"]),
        (Contact("ada@example.org", "Ada\r\nBcc: eve@example.org"), ["dead"]),
        (None, []),
    ],
)
async def test_a_contact_with_a_line_break_or_two_addresses_is_refused(
    store_url: str, box: Mailbox, clock: Clock, reached: Contact | None, states: list[str]
) -> None:
    async with kit_of(store_url, clock, smtp_url=box.url, reach=lambda _: reached) as kit:
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "email")
        assert [] == box.mails
        assert states == [one.state for one in (await kit.notify.list())["email"]]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("eve@example.org, Köln", "eve example.org Köln"),
        (f"eve@example.org, {'x ' * 50_000}", f"eve example.org {'x ' * 41}x"),
        ("=?utf-8?q?eve=40example.org=2C=0D=0ABcc:_eve?=", "= ?utf-8?q?eve=40example.org=2C=0D=0ABcc _eve?="),
    ],
)
async def test_a_name_adds_no_address_and_no_header(
    store_url: str, tmp_path: Path, box: Mailbox, clock: Clock, name: str, shown: str
) -> None:
    subject = "Subject: \0 {{ name[:60] }} =?utf-8?q?x=0D=0ABcc:_eve=40example.org?="
    (tmp_path / "usage.threshold.txt").write_text(f"{subject}\nHello {{{{ name }}}}")
    given: dict[str, Any] = {"smtp_url": box.url, "notify_templates": tmp_path}
    async with kit_of(store_url, clock, reach=lambda _: Contact("ada@example.org", name), **given) as kit:
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "email")
    (mail,) = box.mails
    assert [(one.display_name, one.addr_spec) for one in mail["to"].addresses] == [(shown, "ada@example.org")]
    headers = {"to", "subject", "date", "message-id", "from", "mime-version", "content-type"}
    assert headers == {header.lower() for header in mail}
    body = mail.get_body(("plain",))
    assert body is not None
    assert len(body.get_content()) < 150
    assert mail["subject"].endswith(" = ?utf-8?q?x=0D=0ABcc:_eve=40example.org?=")


async def test_a_customer_chooses_what_is_mailed_but_for_dunning(box: Mailbox, mailing: MeterKit) -> None:
    assert (await mailing.notify.preferences("acme"))["usage.threshold"]
    chosen = await mailing.notify.preferences("acme", {"usage.threshold": False})
    assert (chosen["usage.threshold"], chosen["credits.low"]) == (False, True)
    for dunning in ("payment.failed", "dunning.reminder", "access.changed"):
        with pytest.raises(MeterkitError, match=f"{dunning} cannot be switched off"):
            await mailing.notify.preferences("acme", {dunning: False})
    with pytest.raises(MeterkitError, match=r"found 'usage'; allowed are usage\.threshold"):
        await mailing.notify.preferences("acme", {"usage": False})
    of_a_form: Any = {"usage.threshold": "off"}
    with pytest.raises(MeterkitError, match=r"usage\.threshold: found 'off'; allowed is True or False"):
        await mailing.notify.preferences("acme", of_a_form)
    for customer in ("acme", "bolt"):
        await mailing.record(customer, "requests", 5)
    await pass_over(mailing, "email")
    assert ["bolt@example.org"] == [mail["To"].addresses[0].addr_spec for mail in box.mails]
    assert (await mailing.notify.preferences("acme", {"usage.threshold": True}))["usage.threshold"]


async def test_an_old_event_is_not_sent(
    hook: Receiver, kit: MeterKit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await kit.record("acme", "requests", 5)
    clock.advance(timedelta(days=3, seconds=1))
    await pass_over(kit, "webhook")
    assert [] == hook.posts
    assert "the event is more than 72 hours old" in caplog.text


async def test_a_deleted_customers_messages_are_dropped(hook: Receiver, kit: MeterKit, clock: Clock) -> None:
    hook.status = 500
    for customer in ("acme", "bolt"):
        await kit.record(customer, "requests", 5)
    await kit.notify.preferences("acme", {"credits.low": False})
    await pass_over(kit, "webhook")
    await kit.customers.delete("acme")
    assert 1 == len((await kit.notify.list())["webhook"])
    assert (await kit.notify.preferences("acme"))["credits.low"]
    hook.status = 200
    hook.posts.clear()
    clock.advance(timedelta(seconds=600))
    await pass_over(kit, "webhook")
    assert ["bolt"] == [json.loads(body)["data"]["customer"] for _, body in hook.posts]


async def test_a_damaged_message_is_dead_and_delays_no_other(
    store_url: str, hook: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_of(store_url, clock, url=hook.url, shards=1) as kit:
        client = (await kit.store.admin()).client
        for customer in ("acme", "bolt"):
            await kit.record(customer, "requests", 5)
            await courier(kit, "webhook").collect()
        damaged = (await kit.notify.list())["webhook"][0].id
        await client.hset(kit.store.keys.messages("webhook", 0, "entries"), damaged, "{")
        assert len((await kit.notify.list())["webhook"]) == 2
        await pass_over(kit, "webhook")
        assert len(hook.ids) == 1
        assert damaged not in hook.ids
        assert f"message {damaged} (webhook) is dead: the message cannot be read" in caplog.text
        await client.hset(kit.store.keys.messages("webhook", 0, "dead"), damaged, "{")
        (dead,) = (await kit.notify.list())["webhook"]
        assert (dead.id, dead.state) == (damaged, "dead")
        assert ((await looked_at(kit, "messages"))[0], await kit.notify.redrive()) == ("0 wait, 1 dead", 1)


async def test_a_shard_with_damaged_notices_delays_no_other(
    store_url: str, hook: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with kit_of(store_url, clock, url=hook.url, shards=2) as kit:
        client, keys = (await kit.store.admin()).client, kit.store.keys
        customer = next(name for name in "abcdef" if keys.customer(name).shard == 1)
        await client.set(keys.notices(0), "of another program", px=600_000)
        await kit.record(customer, "requests", 5)
        for _ in range(2):
            await pass_over(kit, "webhook")
        assert len(hook.ids) == 1
    assert caplog.text.count("the notices of shard 0 cannot be read") == 1


async def test_doctor_names_dead_and_unsent_messages(hook: Receiver, kit: MeterKit, clock: Clock) -> None:
    assert ("0 wait, 0 dead", []) == await looked_at(kit, "messages")
    await kit.record("acme", "requests", 5)
    await courier(kit, "webhook").collect()
    clock.advance(timedelta(minutes=5))
    assert ("1 wait, 0 dead", []) == await looked_at(kit, "messages")
    clock.advance(timedelta(minutes=1))
    (late,) = await findings(kit, "messages")
    assert late.problem == "1 message by webhook should have been sent up to 6 min ago"
    assert "METERKIT_NOTIFY_SECRET" in late.cure
    hook.status = 410
    await pass_over(kit, "webhook")
    seen, (dead,) = await looked_at(kit, "messages")
    assert "0 wait, 1 dead" == seen
    assert f"1 message is dead, {hook.ids[0]}: the receiver answers 410" == dead.problem
    metrics = await told(kit)
    assert (metrics["message_items webhook dead"], metrics["message_items email due"]) == (1, 0)


async def test_doctor_names_the_dead_of_both_channels(
    store_url: str, hook: Receiver, box: Mailbox, clock: Clock
) -> None:
    hook.status, box.refusal = 410, "550 no such user"
    async with kit_of(store_url, clock, url=hook.url, smtp_url=box.url) as kit:
        await kit.record("acme", "requests", 5)
        await pass_over(kit, "webhook", "email")
        kept = await kit.notify.list()
        seen, (dead,) = await looked_at(kit, "messages")
    assert seen == "0 wait, 2 dead"
    names = [one.id for one in (*kept["webhook"], *kept["email"])]
    assert dead.problem == f"2 messages are dead, {names[0]}, {names[1]}: the receiver answers 410"


async def test_a_kept_failure_is_short_and_has_no_secret(store_url: str, box: Mailbox, clock: Clock) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x" * 60_000 + b"\r\n\r\n")
        writer.close()

    def reach(customer: str) -> Contact:
        raise RuntimeError(f"postgresql://app:hunter2@db has no {customer}")

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        async with kit_of(store_url, clock, url=url, smtp_url=box.url, reach=reach) as kit:
            await kit.record("acme", "requests", 5)
            await pass_over(kit, "webhook", "email")
            (post,), (mail,) = (await kit.notify.list()).values()
    assert (post.why[:31], len(post.why)) == ("the receiver does not answer: R", 300)
    assert mail.why == "RuntimeError; the log has the traceback"


@pytest.mark.parametrize(
    "addresses",
    [["8.8.8.8", "10.0.0.7"], ["8.8.8.8", "fe80::1%eth0"], ["::ffff:10.0.0.7", "8.8.8.8"]],
    ids=" ".join,
)
async def test_a_name_with_any_private_address_is_refused(
    store_url: str, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    """Else the owner of a name could have messages sent into the network of the app."""
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def mixed(host: str, port: int, **kwargs: Any) -> Any:
        if host != "ops.example":
            return await look_up(host, port, **kwargs)
        kinds = ((AF_INET6 if ":" in one else AF_INET, one) for one in addresses)
        return [(kind, SOCK_STREAM, IPPROTO_TCP, "", (one, port)) for kind, one in kinds]

    async with kit_of(store_url, Clock(NOW), url="https://ops.example/hook") as kit:
        await kit.record("acme", "requests", 5)
        monkeypatch.setattr(loop, "getaddrinfo", mixed)
        await pass_over(kit, "webhook")
        (kept,) = (await kit.notify.list())["webhook"]
        assert (kept.state, kept.attempts) == ("waiting", 1)
        assert "ops.example resolves to a private address" in kept.why


async def test_a_redirect_is_not_followed(hook: Receiver, kit: MeterKit) -> None:
    hook.status, hook.headers = 307, {"location": f"{hook.url}/other"}
    await kit.record("acme", "requests", 5)
    await pass_over(kit, "webhook")
    assert (len(hook.posts), (await kit.notify.list())["webhook"][0].why) == (1, "the receiver answers 307")


@pytest.mark.parametrize(
    ("package", "given"),
    [("standardwebhooks", {"notify_secret": SECRET}), ("aiosmtplib", {"smtp_url": "smtp://127.0.0.1:9"})],
)
def test_a_missing_package_is_named_with_its_cure(
    package: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        return None if name == package else find_spec(name)

    monkeypatch.setattr("meterkit.notify.messages.find_spec", found)
    catalog = loads(PLANS.format(url="http://127.0.0.1:9"))
    with pytest.raises(MeterkitError, match=rf"{package} is required .* pip install 'meterkit\[notify\]'"):
        MeterKit(catalog, redis_url="memory://", contact=contact, **given)


def test_a_process_that_cannot_send_says_why(caplog: pytest.LogCaptureFixture) -> None:
    catalog = loads(PLANS.format(url="http://127.0.0.1:9"))
    MeterKit(catalog, redis_url="memory://")
    assert "sends no messages by webhook: METERKIT_NOTIFY_SECRET is not set" in caplog.text
    assert "sends no messages by email: METERKIT_SMTP_URL is not set" in caplog.text
    MeterKit(catalog, redis_url="memory://", notify_secret=SECRET, smtp_url="smtp://127.0.0.1:9")
    assert "sends no messages by email: the kit was made without `contact`" in caplog.text


async def test_a_task_collects_and_sends(store_url: str, hook: Receiver, box: Mailbox, clock: Clock) -> None:
    async with kit_of(store_url, clock, smtp_url=box.url, flush=None) as kit:
        await kit.record("acme", "requests", 5)
        # Collected at the start of the task; the event may come before or after that.
        await pass_over(kit, "webhook", "email")
        await eventually(lambda: bool(hook.posts and box.mails))


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look the receiver's name up again, and might find a private address."""
    async with receiving_server() as proxy, receiving_server() as hook:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/hook"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with kit_of("memory://", Clock(NOW), url=hook.url) as kit:
            await kit.record("acme", "requests", 5)
            await pass_over(kit, "webhook")
        assert (len(hook.posts), len(proxy.posts)) == (1, 0)
