"""The states of customers: read, and replaced by compare-and-set."""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Final

from meterkit.decisions.customer_state import NO_STATE, CustomerState
from meterkit.decisions.keys import FORMAT
from meterkit.errors import StoreError
from meterkit.store.customer_id import check_customer

if TYPE_CHECKING:
    from collections.abc import Callable

    from meterkit.store.store import Store

__all__ = ["States"]

_TRIES: Final = 32


class States:
    """Each method raises :class:`~meterkit.errors.StoreError` where the store does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(self, customer: str) -> tuple[str, CustomerState]:
        """A customer's rev and state."""
        admin = await self._store.admin()
        key = self._store.keys.customer(customer).state
        rev, data = await admin.ask(admin.client.hmget(key, ["rev", "data"]))
        return (rev or NO_STATE.encode()).decode(), CustomerState.parse(data or b"")

    async def change(self, customer: str, change: Callable[[CustomerState], CustomerState]) -> CustomerState:
        """Replace a state by what follows from it; binds the next decision of every process.

        Raises:
            CustomerError: the id is not allowed.
            StoreError: others changed it again and again.
        """
        store, keys = self._store, self._store.keys.customer(check_customer(customer))
        names = [keys.counters, keys.state, store.keys.shard(keys.shard, "customers"), keys.dirty]
        names.append(keys.unlinked)
        admin = await store.admin()
        for _ in range(_TRIES):
            rev, state = await self.read(customer)
            changed = change(state)
            if changed == state and rev != NO_STATE:
                return state
            reply = await admin.run(
                store.scripts["amend"],
                names,
                rev,
                f"{FORMAT}:{token_hex(8)}",
                changed.dump(),
                customer,
                int(changed.stripe_customer is not None),
                store.now_ms(),
            )
            if reply[0] == 0:
                return changed
        raise StoreError(
            f"customer {customer!r} changed {_TRIES} times while it was being changed; try again"
        )
