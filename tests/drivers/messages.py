"""What tests of messages share: receivers of webhooks and of e-mails, and a kit whose events they get."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final, Literal, TypedDict

import aiosmtplib
import httpx
import respx
from aiosmtpd.smtp import SMTP, Envelope, Session

from drivers.forked_command import die_at
from faults.crashes import SharedClock
from meterkit import Contact, MeterKit
from meterkit.catalog import loads
from meterkit.notify import courier as steps
from meterkit.notify.courier import MessageCourier
from meterkit.notify.mail import MailSender
from meterkit.notify.storage_and_period_watches import StorageWatch
from meterkit.notify.webhook import WebhookSender
from meterkit.store.message_queue import MessageQueue
from servers.fixed_answers import Asked, answer, answering

NOW: Final = datetime(2031, 6, 10, 12, 0, 30, tzinfo=UTC)
HOOK: Final = "http://127.0.0.1:9/hook"
SECRET: Final = f"whsec_{base64.b64encode(b'0' * 32).decode()}"
OTHER_SECRET: Final = f"whsec_{base64.b64encode(b'1' * 32).decode()}"
PLANS: Final = """
schema: 1
currency: usd
default_plan: free
meters:
  requests: {{unit: request}}
notify:
  webhook: {{url: "{url}", events: [usage.threshold, payment.failed]}}
  email: {{events: [usage.threshold, payment.failed], from: billing@example.com}}
plans:
  free:
    price: {{amount_cents: 0, interval: month}}
    meters:
      requests: {{included: 10, overage: deny, warn_at: [50, 100]}}
"""


@dataclass
class Receiver:
    """A receiver of webhooks that keeps headers and body of what is posted to it.

    It answers ``status``, or 503 to bodies that ``refuses`` says.
    """

    url: str = HOOK
    status: int = 200
    refuses: Callable[[str], bool] = lambda _: False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    posts: list[tuple[Mapping[str, str], str]] = field(default_factory=list[tuple["Mapping[str, str]", str]])

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.posts]

    def respond(self, request: httpx.Request) -> httpx.Response:
        body = request.content.decode()
        self.posts.append((dict(request.headers), body))
        return httpx.Response(503 if self.refuses(body) else self.status, headers=dict(self.headers))


@asynccontextmanager
async def receiver() -> AsyncGenerator[Receiver]:
    """A receiver of webhooks at :data:`HOOK` without a server: httpx's requests of this process go to it."""
    found = Receiver()
    with respx.mock(assert_all_called=False) as routes:
        routes.post(HOOK).mock(side_effect=found.respond)
        yield found


@asynccontextmanager
async def receiving_server(port: int = 0, *, tls: ssl.SSLContext | None = None) -> AsyncGenerator[Receiver]:
    """A receiver of webhooks that serves on 127.0.0.1; with TLS its URL names localhost."""
    found = Receiver()

    def keep(asked: Asked) -> bytes:
        found.posts.append((asked.headers, asked.body))
        return answer(found.status)

    async with answering(keep, closes=True, port=port, tls=tls) as server:
        found.url = f"{server.url}/hook"
        yield found


class Mailbox:
    """A handler of aiosmtpd that keeps what is sent; ``refusal`` is what RCPT is answered with."""

    def __init__(self) -> None:
        self.url = ""
        self.refusal = ""
        self.mails: list[EmailMessage] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's own name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's own name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        self.mails.append(message_from_bytes(content, policy=policy.default))
        return "250 OK"


@asynccontextmanager
async def mailbox(port: int = 0) -> AsyncGenerator[Mailbox]:
    box = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(box, loop=loop), "127.0.0.1", port)
    async with server:
        box.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield box


def contact(customer: str) -> Contact | None:
    return Contact(f"{customer}@example.org", "Ada", None)


@asynccontextmanager
async def kit_of(
    store: str,
    clock: Callable[[], float],
    *,
    url: str = HOOK,
    plans: str = PLANS,
    reach: Callable[[str], Contact | None] | None = contact,
    **settings: Any,
) -> AsyncGenerator[MeterKit]:
    """A kit that sends nothing by itself; see :func:`courier`."""
    given: dict[str, Any] = {"notify_secret": SECRET, "flush": False, "shards": 2} | settings
    catalog = loads(plans.format(url=url))
    async with MeterKit(
        catalog, clock=clock, redis_url=store, store_timeout=60.0, contact=reach, **given
    ) as kit:
        yield kit


def any_event(_event: str) -> bool:
    return True


def courier(kit: MeterKit, channel: Any) -> MessageCourier:
    return MessageCourier(kit.store, kit.notify.senders()[channel])


async def pass_over(kit: MeterKit, *channels: str) -> None:
    for channel in channels:
        at_work = courier(kit, channel)
        await at_work.collect()
        await at_work.deliver()


def storage_watch(kit: MeterKit) -> StorageWatch:
    return StorageWatch(kit.store, any_event)


_TAKEN: Final[Mapping[str, tuple[Any, str]]] = {
    "take an event": (steps, "read_notices"),
    "queue": (MessageQueue, "add"),
    "acknowledge": (steps, "acknowledge_notice"),
    "take a message": (MessageQueue, "lease"),
}
STEPS: Final[Mapping[str, Mapping[str, tuple[Any, str]]]] = {
    "webhook": {**_TAKEN, "send": (WebhookSender, "_post_message"), "finish": (MessageQueue, "done")},
    "email": {
        **_TAKEN,
        "write": (MailSender, "_make_mail"),
        "connect": (aiosmtplib.SMTP, "connect"),
        "name the recipient": (aiosmtplib.SMTP, "rcpt"),
        "send": (aiosmtplib.SMTP, "data"),
        "finish": (MessageQueue, "done"),
    },
}
"""By channel, what is done from an event to a message that was sent."""


class Life(TypedDict):
    """What the process is told: addresses, the file of the clock, and where it is killed."""

    store: str
    url: str
    smtp_url: str
    clock: str
    channel: str
    step: str
    when: Literal["before", "after"]


def deliver(life: Life) -> None:
    """What the process does: one pass, until it is killed."""
    die_at(*STEPS[life["channel"]][life["step"]], life["when"])
    asyncio.run(_deliver(life))


async def _deliver(life: Life) -> None:
    clock = SharedClock(life["clock"])
    async with kit_of(life["store"], clock, url=life["url"], smtp_url=life["smtp_url"]) as kit:
        await pass_over(kit, life["channel"])
