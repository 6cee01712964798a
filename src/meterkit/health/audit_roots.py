"""Findings about the roots of the audit log in invoices: renewals that went out without one."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.customers.links import owner_of
from meterkit.delivery.audit_root import is_final_renewal, root_in
from meterkit.errors import MeterkitError, StripeError
from meterkit.health.audit_log import PATIENCE_S
from meterkit.health.findings import Finding, named, single
from meterkit.health.health import UnseenError
from meterkit.insights.audit.draining import drainer_of
from meterkit.redis.daemon_thread import in_thread
from meterkit.stripe.api import StripeApi
from meterkit.subscriptions.stripe_objects import id_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meterkit.assembly import Parts

_DAYS: Final = 7
_MOST: Final = 100


async def look_at_roots(parts: Parts) -> tuple[str, list[Finding]]:
    """Whether the renewals of the last week, a hundred at most, have a root where the log had rows before.

    Raises:
        UnseenError: Stripe or the database cannot be asked.
        StoreError: the store does not answer.
    """
    final = [one for one in await _invoices(parts) if is_final_renewal(one)]
    bare = {id_in(one, "customer"): one for one in final if root_in(one) is None}
    admin, before_ms = await parts.store.admin(), dict[str, int]()
    names = dict[str, str]()
    for linked, invoice in bare.items():
        claim: bytes | None = await admin.ask(admin.client.get(parts.store.keys.link(linked)))
        if customer := owner_of((claim or b"").decode()):
            before_ms[customer], names[customer] = int(invoice["created"]) * 1000, str(invoice["id"])
    begun_before: Any = import_module("meterkit.insights.audit.verifying").begun_before
    database = drainer_of(parts.store, parts.settings).database
    try:
        async with asyncio.timeout(PATIENCE_S):
            lacking: list[str] = await in_thread(begun_before, database, before_ms)
    except (MeterkitError, TimeoutError):
        raise UnseenError("the database does not answer") from None  # Said of the database itself.
    seen = f"renewals in {_DAYS} days: {len(final):,}"
    return seen, without_root([names[customer] for customer in lacking])


async def _invoices(parts: Parts) -> Sequence[Mapping[str, Any]]:
    if parts.settings.stripe_api_key is None:
        raise UnseenError("no Stripe key is set (METERKIT_STRIPE_API_KEY)")
    api, since_s = StripeApi(parts.settings), parts.store.now_ms() // 1000 - _DAYS * 86_400
    try:
        page = await api.get("/v1/invoices", {"created": {"gte": since_s}, "limit": _MOST})
    except StripeError as error:
        raise UnseenError(f"invoices cannot be read: {error}") from None
    finally:
        await api.close()
    found: Sequence[Mapping[str, Any]] = page["data"]
    return found


def without_root(invoices: Sequence[str]) -> list[Finding]:
    """Final invoices that pin down nothing of the audit log."""
    if not invoices:
        return []
    return single(
        check="roots",
        problem=f"these invoices went out without the root of the audit log: {named(invoices)}",
        cure="see that a process that delivers runs with METERKIT_AUDIT_URL and reaches its database; its log"
        " says why (meterkit.audit). The root of each customer's next invoice covers the same rows",
    )
