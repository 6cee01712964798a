"""Scripts that change what was recorded of a customer are asked by the newest view of the customer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meterkit.errors import StoreError
from meterkit.store import replies

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meterkit.redis.scripts import Script
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

    Call = tuple[list[str], tuple[str | bytes, ...]]

__all__ = ["OfCustomerError", "ask_confirmed"]

_TRIES: Final = 8


class OfCustomerError(StoreError):
    """What the store keeps of one customer is in the way; others are not concerned."""


async def ask_confirmed(
    store: Store,
    script: Script,
    customer: str,
    call: Callable[[CustomerView], Awaitable[Call]],
    *,
    done: str,
) -> list[Any]:
    """The reply of a script that begins with ``confirm_counters``, by the newest view of a customer.

    Args:
        store: where the customer is.
        script: what is asked.
        customer: whose id is valid.
        call: its keys, and its arguments but for the caller's clock, by a view.
        done: what it does, for errors: "corrected".

    Raises:
        OfCustomerError: what is kept of the customer cannot be read, or changes again and again.
        StoreError: the store does not answer, or its clock is another one than this host's.
    """
    admin = await store.admin()
    await admin.load(script)
    for _ in range(_TRIES):
        view = store.cache.get(customer)
        names, arguments = await call(view)
        # Text would not do for the numbers among the arguments.
        asked = admin.client.evalsha(script.sha, len(names), *names, *arguments, admin.now_ms())
        reply: list[Any] = await admin.ask(asked)
        if reply[0] == replies.CLOCK:
            raise StoreError(f"this host's clock and the store's differ by more than 60 s: nothing is {done}")
        if reply[0] == replies.BROKEN:
            raise OfCustomerError(f"the field {reply[2].decode()} of {customer!r} is not a whole number")
        if reply[0] != replies.STALE:
            return reply
        try:
            view.cache.learn(view, reply)
        except StoreError as error:
            raise OfCustomerError(str(error), executed=False) from error
    raise OfCustomerError(f"customer {customer!r} changed {_TRIES} times while it was {done}; try again")
