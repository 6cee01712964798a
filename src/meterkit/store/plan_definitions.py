"""Definitions of plans and add-ons in the store: customers outlive the plans file that had their plan."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.former_plans import Definition, list_definitions, with_former_plans
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meterkit.catalog import Catalog
    from meterkit.redis.admin import Admin
    from meterkit.store.store import Store

_REPLACED_MAX: Final = 64
"""Replaced definitions of a plan whose digests are kept."""


async def exchange_plans(admin: Admin, store: Store, *, writes: bool = True) -> None:
    """Store the plans and add-ons of the plans file in use; use those of other files that it lacks.

    A definition that another file has replaced is not stored again: this process's file is older.

    Args:
        admin: asks the store.
        store: has the catalog.
        writes: whether to store any.

    Raises:
        StoreError: the store does not answer.
    """
    kept: dict[Any, bytes] = await admin.ask(admin.client.hgetall(store.keys.plans))
    catalog = store.catalog
    stored = {name.decode(): _read_entry(data) for name, data in kept.items() if isinstance(name, bytes)}
    known = {f"{one.kind} {one.key}": one for one in list_definitions(catalog)}
    of_file = {f"plan {key}" for key in catalog.plans} | {f"addon {key}" for key in catalog.addons}
    gone = {name: entry for name, entry in stored.items() if name not in of_file}
    more = with_former_plans(catalog, [*known.values(), *_list_readable(gone, admin, catalog)])
    if more != catalog:
        store.use(more)
    # A plan that left is stored whole: here, parts of it may be left out.
    own = {name: one for name, one in known.items() if name in of_file or name not in stored}
    changed = {name: entry for name, one in own.items() if (entry := _replace(stored.get(name), one))}
    if changed and writes:
        await admin.ask(admin.client.hset(store.keys.plans, mapping=changed))


async def read_unknown_plans(admin: Admin, store: Store, plans: Iterable[str]) -> None:
    """Use the terms of plans that the plans file in use lacks; ask once for each key and file.

    Raises:
        StoreError: the store does not answer.
    """
    catalog, alarms = store.catalog, store.cache.alarms
    if [key for key in plans if catalog.find_plan(key) is None and alarms.is_new_plan(key)]:
        await exchange_plans(admin, store, writes=False)


def _list_readable(
    stored: Mapping[str, Mapping[str, Any] | None], admin: Admin, catalog: Catalog
) -> Iterator[Definition]:
    for name, entry in stored.items():
        try:
            yield _check_readable(name, entry, catalog)
        except UNREADABLE:
            admin.warn_once(
                f"what is stored of the {name!r:.80} cannot be read: customers who still have it get the"
                " default plan, or nothing of an add-on; put it back into the plans file"
            )


def _check_readable(name: str, entry: Mapping[str, Any] | None, catalog: Catalog) -> Definition:
    if entry is None:
        raise ValueError("no JSON of an entry")
    kind, _, key = name.partition(" ")
    terms = Definition(kind, key, entry["terms"])
    with_former_plans(catalog, [terms])
    return terms


def _read_entry(data: bytes) -> Mapping[str, Any] | None:
    """A stored entry; None: it is damaged."""
    try:
        found: Mapping[str, Any] = json.loads(data)
        return found if found["terms"] and isinstance(found["replaced"], list) else None
    except UNREADABLE:
        return None


def _replace(stored: Mapping[str, Any] | None, own: Definition) -> str:
    """The entry of a definition; empty: the stored one is the same, or newer."""
    replaced: list[str] = []
    if stored is not None:
        replaced = stored["replaced"]
        if stored["terms"] == own.by_currency or _digest(own.by_currency) in replaced:
            return ""
        replaced = [*replaced, _digest(stored["terms"])][-_REPLACED_MAX:]
    entry = {"terms": own.by_currency, "replaced": replaced}
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


def _digest(terms: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(terms, sort_keys=True).encode(), digest_size=6).hexdigest()
