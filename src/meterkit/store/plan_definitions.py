"""Definitions of plans and add-ons in the store: customers outlive the plans file that had their plan."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.former_plans import Definition, list_definitions, with_former_plans
from meterkit.store.unreadable_data import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.catalog import Catalog
    from meterkit.decisions.keys import Keys
    from meterkit.redis.admin import Admin

_REPLACED_MAX: Final = 64
"""Replaced definitions of a plan whose digests are kept."""


async def remember_plans(admin: Admin, keys: Keys, catalog: Catalog) -> list[Definition]:
    """Store the plans and add-ons of this plans file; return those that it lacks.

    A definition that another file has replaced is not stored again: this process's file is older.

    Raises:
        StoreError: the store does not answer.
    """
    kept: dict[bytes, bytes] = await admin.ask(admin.client.hgetall(keys.plans))
    stored = {name.decode(): _read_entry(data) for name, data in kept.items()}
    own = {f"{one.kind} {one.key}": one for one in list_definitions(catalog)}
    changed = {name: entry for name, one in own.items() if (entry := _replace(stored.get(name), one))}
    if changed:
        await admin.ask(admin.client.hset(keys.plans, mapping=changed))
    found = list[Definition]()
    for name in stored.keys() - own.keys():
        try:
            found.append(_check_readable(name, stored[name], catalog))
        except UNREADABLE:
            admin.warn_once(
                f"what is stored of the {name!r:.80} cannot be read: customers who still have it get the"
                " default plan, or nothing of an add-on; put it back into the plans file"
            )
    return found


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
