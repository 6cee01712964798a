"""Who began a provider's job, in the store: a hash per job, by the provider's id of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

__all__ = ["Claim", "Counting", "claim_job", "has_ended", "remember_job"]

Counting = Literal["whole", "lines"]
"""How a job is counted: by the figures of the whole, or line by line. A batch has both."""

_KEPT_MS: Final = 40 * 86_400_000
"""Longer than event ids, so that no other customer pays for a job whose id still counts once."""


class Claim(NamedTuple):
    """Who pays for a job, None where no one is known, and whether it is counted in the way that was asked."""

    owner: CustomerView | None
    counts: bool


async def remember_job(store: Store, job_id: str, view: CustomerView, route: str) -> None:
    """Remember whose request began a job, unless that is known. Raises StoreError."""
    await _write(store, job_id, {"owner": _owner(view, route)})


async def claim_job(
    store: Store, job_id: str, view: CustomerView | None, route: str, *, by: Counting | None
) -> Claim:
    """Find who pays for a job whose end is seen, and have it counted in this way from now on.

    Args:
        store: where jobs are remembered.
        job_id: the provider's id of the job.
        view: who pays if the store does not know who began it; None: no customer does. Of lines it is
            not remembered: a worker may put the lines of many customers into one batch.
        route: of the request that sees the end; empty: none does.
        by: how it is to be counted; None: the provider reports no figures.

    Raises:
        StoreError: the store does not answer.
    """
    fields = {"ended": "1"}
    if by is not None:
        fields["by"] = by
    if view is None:
        admin = await store.admin()
        if await admin.ask(admin.client.hget(store.keys.job(job_id), "owner")) is None:
            return Claim(None, counts=False)
    elif by != "lines":
        fields["owner"] = _owner(view, route)
    owner, counted_by = await _write(store, job_id, fields)
    counts = by is not None and counted_by.decode() == by
    if owner is None:
        return Claim(view, counts)
    customer, anonymous, _ = json.loads(owner)
    return Claim(store.cache.get(customer, anonymous=anonymous), counts)


async def has_ended(store: Store, job_id: str) -> bool:
    """Whether the end of a job was seen. Raises StoreError."""
    admin = await store.admin()
    return await admin.ask(admin.client.hget(store.keys.job(job_id), "ended")) is not None


def _owner(view: CustomerView, route: str) -> str:
    return json.dumps([view.customer, view.anonymous, route], ensure_ascii=False)


async def _write(store: Store, job_id: str, fields: Mapping[str, str]) -> tuple[Any, Any]:
    """Write fields that are not there yet; the owner and the way of counting after that."""
    key = store.keys.job(job_id)
    admin = await (await store.admin()).at(key)
    pipe: Any = admin.client.pipeline(transaction=True)
    for name, value in fields.items():
        pipe.hsetnx(key, name, value)
    pipe.pexpire(key, _KEPT_MS, nx=True)
    pipe.hmget(key, ["owner", "by"])
    *_, (owner, by) = await admin.ask(pipe.execute())
    return owner, by
