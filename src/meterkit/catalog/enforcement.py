"""The same plans, enforced otherwise than the file says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meterkit.catalog.models import Catalog, Enforcement, Route

__all__ = ["enforced"]


def enforced(catalog: Catalog, enforcement: Enforcement | None) -> Catalog:
    """The catalog with this enforcement in place of the file's own and its routes'; None leaves them."""
    if enforcement is None:
        return catalog
    routes = tuple(_enforced(route, enforcement) for route in catalog.routes)
    return replace(catalog, routes=routes, enforcement=enforcement)


def _enforced(route: Route, enforcement: Enforcement) -> Route:
    if enforcement == "off":
        # Nothing is counted: then there is nothing to read, to set aside or to tell either.
        return replace(route, enforcement="off", usage="none", reserve=(), headers="none")
    return replace(route, enforcement=enforcement)
