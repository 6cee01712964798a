"""What a shell is offered where a command wants a name of the plans file, or a status."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, get_args

from meterkit.catalog import load
from meterkit.decisions.customer_state import Status
from meterkit.errors import PlansError

if TYPE_CHECKING:
    from meterkit.catalog import Catalog

__all__ = ["NO_STATUS", "STATUSES", "complete_meter", "complete_plan", "complete_status", "plans_path"]

NO_STATUS: Final = "none"
STATUSES: Final[tuple[str, ...]] = (*get_args(Status), NO_STATUS)


def plans_path(named: str | None) -> str:
    """The plans file that a command reads: the one it names, else that of the environment."""
    return named or os.environ.get("METERKIT_PLANS") or "plans.yaml"


def complete_plan(incomplete: str) -> list[str]:
    """The plans whose names begin so."""
    catalog = _catalog()
    return [] if catalog is None else [name for name in catalog.plans if name.startswith(incomplete)]


def complete_meter(incomplete: str) -> list[str]:
    """The meters whose names begin so."""
    catalog = _catalog()
    return [] if catalog is None else [name for name in catalog.meters if name.startswith(incomplete)]


def complete_status(incomplete: str) -> list[str]:
    """The states of a subscription whose names begin so."""
    return [word for word in STATUSES if word.startswith(incomplete)]


def _catalog() -> Catalog | None:
    try:
        return load(plans_path(None))
    except PlansError:
        return None  # Somebody is pressing Tab: what is wrong with the file is said by the command.
