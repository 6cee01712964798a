"""Root of the audit log in the metadata of an invoice: it pins the rows that the bill is computed from."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from meterkit.errors import MeterkitError
from meterkit.outbox.close_queue import RENEWAL
from meterkit.outbox.meters_or_lines import USAGE_KEY
from meterkit.stripe.idempotency_keys import key_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from meterkit.stripe.api import StripeApi

ROOT: Final = "meterkit_audit_root"
"""Key in an invoice's metadata: the hash of the customer's last audit row."""
ROWS: Final = "meterkit_audit_rows"
"""Key in an invoice's metadata: the number of rows in the customer's chain."""
_ROOT_WAIT_S: Final = 10.0
"""Time that an invoice waits for its root; then it goes out without."""

RootOf: TypeAlias = "Callable[[str], Awaitable[tuple[int, str] | None]]"
"""Reads the number of rows of a customer's chain, and its root; None: it has none."""

_logger = logging.getLogger("meterkit.audit")


class InvoiceRoot(NamedTuple):
    """Root in an invoice, with the number of its rows."""

    invoice: str
    rows: int
    root: str


def read_root(invoice: Mapping[str, Any]) -> InvoiceRoot | None:
    """Read the root in an invoice's metadata; None: there is none."""
    metadata: Mapping[str, str] = invoice.get("metadata") or {}
    root, rows = metadata.get(ROOT), metadata.get(ROWS, "")
    return InvoiceRoot(str(invoice["id"]), int(rows), root) if root and rows.isdecimal() else None


def is_final_renewal(invoice: Mapping[str, Any]) -> bool:
    """Whether an invoice is a final one of a renewal, or of our own: only such an invoice may have a root."""
    status, reason = invoice.get("status"), invoice.get("billing_reason")
    metadata: Mapping[str, str] = invoice.get("metadata") or {}
    return (reason == RENEWAL or USAGE_KEY in metadata) and status not in ("draft", "void")


class RootWriter:
    """Writes roots into invoices. A failure is logged once, and the invoice goes out without a root.

    Args:
        root_of: drains the customer's part of the audit log, and reads its root.
    """

    def __init__(self, root_of: RootOf) -> None:
        self._root_of = root_of
        self._has_failed = False

    async def mark(
        self,
        api: StripeApi,
        customer: str,
        invoices: Iterable[Mapping[str, Any]],
    ) -> bool:
        """Write the root into the invoices of a period, unless they have one; False: that failed."""
        lacking = [one for one in invoices if one.get("status") != "void" and read_root(one) is None]
        if not lacking:
            return True
        try:
            async with asyncio.timeout(_ROOT_WAIT_S):
                root = await self._root_of(customer)
            if root is not None:
                for invoice in lacking:
                    await self._post_root(api, str(invoice["id"]), root)
        except (MeterkitError, TimeoutError) as error:
            self._log_once(str(error) or "the audit log was not drained in time")
            return False
        self._has_failed = False
        return True

    async def _post_root(self, api: StripeApi, invoice: str, root: tuple[int, str]) -> None:
        rows, hashed = root
        await api.post(
            f"/v1/invoices/{invoice}",
            {"metadata": {ROOT: hashed, ROWS: str(rows)}},
            idempotency_key=key_of("root", invoice, rows, hashed),
        )

    def _log_once(self, why: str) -> None:
        if not self._has_failed:
            _logger.warning("invoices go out without the root of the audit log: %s", why)
        self._has_failed = True
