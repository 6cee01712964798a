"""Another plan for everybody, as long as a test wants it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from meterkit.catalog.errors import unknown
from meterkit.catalog.load import digest
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Generator

    from meterkit.catalog import Catalog
    from meterkit.kit import MeterKit

_written: Final[WeakKeyDictionary[MeterKit, Catalog]] = WeakKeyDictionary()
"""Catalogs of kits outside of all blocks: within one, each key has the same plan."""


@contextmanager
def override(kit: MeterKit, *, plan: str) -> Generator[None]:
    """Put every customer of a kit on one plan within a ``with`` block.

    From the next decision on, in this process, ``plan`` holds whatever plan a customer was put on, and also
    where payments have it restricted; a suspended one stays refused. Nothing is written, and what
    was used before counts. Of blocks within each other, the innermost counts.

    Args:
        kit: whose customers.
        plan: a plan of its plans file.

    Raises:
        MeterkitError: there is no such plan.
    """
    before = kit.catalog
    written = _written.get(kit, before)
    if plan not in written.plans:
        raise MeterkitError(unknown("plan", plan, written.plans))
    kit.store.use(digest(_with_one_plan(written, plan)))
    _written[kit] = written
    try:
        yield
    finally:
        kit.store.use(before)
        if before is written:
            del _written[kit]


def _with_one_plan(catalog: Catalog, plan: str) -> Catalog:
    return replace(
        catalog,
        plans=dict.fromkeys(catalog.plans, catalog.plans[plan]),
        former_plans=dict.fromkeys(catalog.former_plans, catalog.plans[plan]),
        default_plan=plan,
        other_currencies={code: _with_one_plan(one, plan) for code, one in catalog.other_currencies.items()},
    )
