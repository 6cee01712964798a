"""The channel ``email``: text and HTML by SMTP, to the address that the app's ``contact`` gives."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formataddr, formatdate
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from meterkit.catalog.notify import is_address, names_private_host
from meterkit.customers.states import CustomerStates
from meterkit.notify.courier import SendError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection

    from pydantic import SecretStr

    from meterkit.notify.courier import Message
    from meterkit.notify.rendering import RenderedMessage, Renderer
    from meterkit.store.message_queue import Channel
    from meterkit.store.store import Store

_TIMEOUT_S: Final = 20.0
_PERMANENT: Final = 500
_PORTS: Final = {"smtp": 587, "smtps": 465}
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SPECIALS: Final = str.maketrans(dict.fromkeys('()<>[]@,;:\\"', " "))
_NAME_MOST: Final = 100


class Recipient(Protocol):
    """Contact of a customer; see :class:`meterkit.Contact`."""

    @property
    def email(self) -> str:
        """E-mail address."""
        ...

    @property
    def name(self) -> str | None:
        """Name of the person or company."""
        ...

    @property
    def locale(self) -> str | None:
        """Language, such as ``de``."""
        ...


def make_mail(message: Message, rendered: RenderedMessage, *, sender: str, to: Recipient) -> EmailMessage:
    """Make the e-mail of a message. Pure, except for the date.

    Raises:
        SendError: the contact's address or name cannot be used; final.
    """
    name = to.name or ""
    if not is_address(to.email):
        raise SendError(
            "the contact's address is not a single e-mail address without encoded words (=?…?=)",
            is_final=True,
        )
    if _CONTROL.search(name):
        raise SendError("the contact's name has a line break or a control character", is_final=True)
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = formataddr((_display_name(name), to.email))
    mail["Subject"] = _break_encoded_words(_CONTROL.sub(" ", rendered.subject))
    mail["Date"] = formatdate()
    # Stays the same for each attempt: mailboxes detect repeats by it.
    mail["Message-ID"] = f"<{message.id}@{sender.partition('@')[2]}>"
    mail.set_content(rendered.text)
    mail.add_alternative(rendered.html, subtype="html")
    return mail


def _display_name(name: str) -> str:
    """Make a name safe for an address header: it cannot be read as another address. Pure.

    Many Python releases write long and non-ASCII names without quotes
    (https://github.com/python/cpython/issues/80222 and 121284), and take seconds for 100,000 characters.
    """
    return _break_encoded_words(" ".join(name[:_NAME_MOST].translate(_SPECIALS).split()))


def _break_encoded_words(text: str) -> str:
    """Break encoded words in a header text. Pure.

    Python decodes them, and many releases write the decoded text unescaped
    (https://github.com/python/cpython/issues/121650): a line break would begin another header.
    """
    return text.replace("=?", "= ?")


@dataclass(eq=False)
class MailSender:
    """Sends messages by SMTP.

    Args:
        store: its catalog has the sender address.
        url: SMTP server.
        renderer: makes subject, text and HTML.
        contact: ``(customer) -> Recipient | None``.
        unwanted: ``(customer)``: events that the customer does not want by e-mail.
    """

    store: Store
    url: SecretStr
    renderer: Renderer
    contact: Callable[[str], Awaitable[Recipient | None]]
    unwanted: Callable[[str], Awaitable[Collection[str]]]

    @property
    def channel(self) -> Channel:
        """Name of the channel."""
        return "email"

    @property
    def events(self) -> tuple[str, ...]:
        """Events that customers are sent."""
        channel = self.store.catalog.notify.email
        return () if channel is None else channel.events

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Callable[[Message], Awaitable[None]]]:
        """Yield a function that sends one message, over a new connection, or raises SendError."""
        aiosmtplib: Any = import_module("aiosmtplib")

        async def send(message: Message) -> None:
            mail = await self._make_mail(message)
            if mail is None:
                return
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await aiosmtplib.send(
                        mail, timeout=_TIMEOUT_S, **parse_smtp_url(self.url.get_secret_value())
                    )
            except aiosmtplib.SMTPRecipientsRefused as error:
                codes = [int(refused.code) for refused in error.recipients]
                raise SendError(
                    f"the address is refused: {', '.join(map(str, codes))}",
                    is_final=all(code >= _PERMANENT for code in codes),
                ) from error
            except aiosmtplib.SMTPDataError as error:
                raise SendError(
                    f"the e-mail is refused: {error.code}", is_final=int(error.code) >= _PERMANENT
                ) from error
            except (aiosmtplib.SMTPException, OSError) as error:
                # Only the kind: a server may repeat user and password.
                raise SendError(f"the SMTP server does not accept it: {type(error).__name__}") from error

        yield send

    async def _make_mail(self, message: Message) -> EmailMessage | None:
        """Make the e-mail; None if the customer does not want it or has no address."""
        channel = self.store.catalog.notify.email
        if channel is None:
            raise SendError("the plans file has no notify.email")
        if message.event in await self.unwanted(message.customer):
            return None
        to = await self.contact(message.customer)
        if to is None or not to.email:
            return None
        name = None if to.name is None else to.name[:_NAME_MOST]
        currency = await self._read_currency(message.customer)
        rendered = self.renderer.render(message, locale=to.locale, name=name, currency=currency)
        return make_mail(message, rendered, sender=channel.sender, to=to)

    async def _read_currency(self, customer: str) -> str:
        """The currency that Stripe bills a customer in; not read where the plans file has only one."""
        if len(self.store.catalog.currencies) == 1:
            return ""
        _, state = await CustomerStates(self.store).read(customer)
        return state.currency


def parse_smtp_url(url: str) -> dict[str, Any]:
    """Parse a URL into arguments of aiosmtplib; a password goes to a public address only over TLS."""
    parts = urlsplit(url)
    found: dict[str, Any] = {
        "hostname": parts.hostname,
        "port": parts.port or _PORTS[parts.scheme],
        "use_tls": parts.scheme == "smtps",
    }
    if parts.username is not None and parts.password is not None:
        if parts.scheme == "smtp" and not names_private_host(parts.hostname or ""):
            found["start_tls"] = True
        found |= {"username": unquote(parts.username), "password": unquote(parts.password)}
    return found
