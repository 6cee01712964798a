"""Hold pending usage back: it is neither sealed before an instant, nor stamped before it (see seal.lua)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import to_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store

__all__ = ["hold_usage", "let_go_of_usage", "next_minute_ms"]

_KEPT_MS: Final = 400 * 86_400_000
_MINUTE_MS: Final = 60_000


def next_minute_ms(now_ms: int) -> int:
    """The first whole minute after an instant: what is stamped with it comes after a change of now."""
    return (now_ms // _MINUTE_MS + 1) * _MINUTE_MS


async def hold_usage(store: Store, customer: str, *, till_ms: int) -> None:
    """Hold back what a customer has used and is not sealed yet in this period, until an instant.

    Raises:
        StoreError: the store does not answer.
    """
    await _write(store, customer, {"w": till_ms})


async def let_go_of_usage(store: Store, customer: str, *, changed_ms: int) -> None:
    """Have usage sealed again that was held back, stamped at or after the instant when prices changed.

    Raises:
        StoreError: the store does not answer.
    """
    await _write(store, customer, {"w": 0, "y": changed_ms})


async def _write(store: Store, customer: str, instants: Mapping[str, int]) -> None:
    usage, admin = await store.usage(customer), await store.admin()
    totals, period = store.keys.customer(customer).totals, to_ms(usage["period"]["start"])
    pipe = admin.client.pipeline(transaction=True)
    pipe.hset(totals, mapping={f"{period}|{name}": str(at_ms) for name, at_ms in instants.items()})
    pipe.pexpire(totals, _KEPT_MS)
    await admin.ask(pipe.execute())
