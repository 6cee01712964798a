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
from meterkit.notify.courier import Failure

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
    """How a customer is reached; see :class:`meterkit.Contact`."""

    @property
    def email(self) -> str:
        """The address."""
        ...

    @property
    def name(self) -> str | None:
        """The name of the person or company."""
        ...

    @property
    def locale(self) -> str | None:
        """The language, such as ``de``."""
        ...


def mail_of(message: Message, rendered: RenderedMessage, *, sender: str, to: Recipient) -> EmailMessage:
    """The e-mail of a message. Pure, except for the date.

    Raises:
        Failure: the contact's address or name cannot be used; final.
    """
    name = to.name or ""
    if not is_address(to.email):
        raise Failure("the contact's address is not one e-mail address", is_final=True)
    if _CONTROL.search(name):
        raise Failure("the contact's name has a line break or a control character", is_final=True)
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = formataddr((_display_name(name), to.email))
    mail["Subject"] = _undecodable(_CONTROL.sub(" ", rendered.subject))
    mail["Date"] = formatdate()
    # The same for each attempt: a mailbox may recognise a repeat by it.
    mail["Message-ID"] = f"<{message.id}@{sender.partition('@')[2]}>"
    mail.set_content(rendered.text)
    mail.add_alternative(rendered.html, subtype="html")
    return mail


def _display_name(name: str) -> str:
    """A name for the header, which cannot be taken for a further address. Pure.

    Many releases of Python write names that are long or not ASCII without their quotes
    (https://github.com/python/cpython/issues/80222 and 121284), and take seconds for 100,000 characters.
    """
    return _undecodable(" ".join(name[:_NAME_MOST].translate(_SPECIALS).split()))


def _undecodable(text: str) -> str:
    """A text for a header without encoded words. Pure.

    Python decodes those, and many releases write what they hide as it is
    (https://github.com/python/cpython/issues/121650): a line break then begins another header.
    """
    return text.replace("=?", "= ?")


@dataclass(eq=False)
class MailSender:
    """Sends messages by SMTP.

    Args:
        store: whose catalog has the sender.
        url: of the SMTP server.
        renderer: makes subject, text and HTML.
        contact: ``(customer) -> Recipient | None``: where the customer is reached.
        unwanted: ``(customer)``: the kinds of e-mails that the customer does not want.
    """

    store: Store
    url: SecretStr
    renderer: Renderer
    contact: Callable[[str], Awaitable[Recipient | None]]
    unwanted: Callable[[str], Awaitable[Collection[str]]]

    @property
    def channel(self) -> Channel:
        """The name of the channel."""
        return "email"

    @property
    def events(self) -> tuple[str, ...]:
        """The events that customers are sent."""
        channel = self.store.catalog.notify.email
        return () if channel is None else channel.events

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Callable[[Message], Awaitable[None]]]:
        """What sends one message, or raises Failure; each over a connection of its own."""
        aiosmtplib: Any = import_module("aiosmtplib")

        async def send(message: Message) -> None:
            mail = await self._mail(message)
            if mail is None:
                return
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    await aiosmtplib.send(mail, timeout=_TIMEOUT_S, **server_of(self.url.get_secret_value()))
            except aiosmtplib.SMTPRecipientsRefused as error:
                codes = [int(refused.code) for refused in error.recipients]
                raise Failure(
                    f"the address is refused: {', '.join(map(str, codes))}",
                    is_final=all(code >= _PERMANENT for code in codes),
                ) from error
            except aiosmtplib.SMTPDataError as error:
                raise Failure(
                    f"the e-mail is refused: {error.code}", is_final=int(error.code) >= _PERMANENT
                ) from error
            except (aiosmtplib.SMTPException, OSError) as error:
                # Only the kind: a server may repeat user and password.
                raise Failure(f"the SMTP server does not take it: {type(error).__name__}") from error

        yield send

    async def _mail(self, message: Message) -> EmailMessage | None:
        """The e-mail; None: the customer does not want it, or has no address."""
        channel = self.store.catalog.notify.email
        if channel is None:
            raise Failure("the plans file has no notify.email")
        if message.event in await self.unwanted(message.customer):
            return None
        to = await self.contact(message.customer)
        if to is None or not to.email:
            return None
        name = None if to.name is None else to.name[:_NAME_MOST]
        rendered = self.renderer.render(message, locale=to.locale, name=name)
        return mail_of(message, rendered, sender=channel.sender, to=to)


def server_of(url: str) -> dict[str, Any]:
    """The server of a URL, as aiosmtplib takes it. A password is sent to a public address over TLS only."""
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
