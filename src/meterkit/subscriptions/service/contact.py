"""What the app tells Stripe of a customer: e-mail address, name, language. meterkit stores none of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, TypeAlias

from anyio import to_thread

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from meterkit.stripe.request import Parameter

__all__ = ["Contact", "ContactSource", "contact_of", "contact_params"]


@dataclass(frozen=True, slots=True)
class Contact:
    """How Stripe reaches a customer: where receipts, invoices and reminders go.

    Attributes:
        email: the address.
        name: of the person or company; it is on invoices.
        locale: the language of invoices and e-mails, such as ``de`` or ``pt-BR``.
    """

    email: str
    name: str | None = None
    locale: str | None = None


ContactSource: TypeAlias = Callable[[str], Contact | Awaitable[Contact | None] | None]
"""Gives the contact of a customer; None: there is none. A function that is not async runs in a thread."""


async def contact_of(source: ContactSource, customer: str) -> Contact | None:
    """The contact of a customer; None: there is none.

    Raises:
        MeterkitError: the app's function gives something else than a Contact or None.
    """
    found = source(customer) if iscoroutinefunction(source) else await to_thread.run_sync(source, customer)
    if isawaitable(found):
        found = await found
    if found is not None and not isinstance(found, Contact):
        kind = type(found).__name__
        raise MeterkitError(
            f"contact: the function gave a value of type {kind}; allowed are Contact and None"
        )
    return found


async def contact_params(source: ContactSource | None, customer: str) -> dict[str, Parameter]:
    """The contact as parameters of a Stripe customer; raises as :func:`contact_of` does."""
    found = None if source is None else await contact_of(source, customer)
    if found is None:
        return {}
    locales = None if found.locale is None else [found.locale]
    return {"email": found.email, "name": found.name, "preferred_locales": locales}
