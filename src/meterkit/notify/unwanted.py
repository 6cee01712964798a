"""The kinds of e-mails that a customer does not want, as a set in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["ALWAYS", "read_unwanted", "write_unwanted"]

ALWAYS: Final = frozenset({"dunning.reminder", "payment.failed", "access.changed"})
"""Events of dunning, which every customer is sent."""


async def read_unwanted(store: Store, customer: str) -> frozenset[str]:
    """The events that a customer does not want by e-mail.

    Raises:
        StoreError: the store does not answer.
    """
    admin = await store.admin()
    found: set[bytes] = await admin.ask(admin.client.smembers(store.keys.unwanted(customer)))
    return frozenset(event.decode() for event in found) - ALWAYS


async def write_unwanted(store: Store, customer: str, wanted: Mapping[str, bool]) -> None:
    """Change which events a customer wants by e-mail; others stay as they are.

    Raises:
        StoreError: the store does not answer.
    """
    admin, key = await store.admin(), store.keys.unwanted(customer)
    pipe = admin.client.pipeline(transaction=False)
    for event, is_wanted in wanted.items():
        (pipe.srem if is_wanted else pipe.sadd)(key, event)
    await admin.ask(pipe.execute())
