"""Rules of add-ons: requested quantities, the time at which each change takes effect, and their end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, cast

from meterkit.catalog.addons import MAX_QUANTITY
from meterkit.errors import AddonLimitError, MeterkitError, QuantityError, UnknownAddonError

if TYPE_CHECKING:
    from meterkit.catalog import Catalog, Changes, Plan
    from meterkit.catalog.models import Bought
    from meterkit.decisions.subscription import SubscriptionState


class RequestedAddons(NamedTuple):
    """A request for quantities of add-ons, split by the time at which they take effect.

    Attributes:
        now: add-ons from now on.
        given: requested quantities by key, those of later phases too.
    """

    now: Bought
    given: Mapping[str, int]

    @property
    def has_waiting(self) -> bool:
        """Whether a requested quantity takes effect only when the period ends."""
        present = dict(self.now)
        return any(present.get(addon, 0) != quantity for addon, quantity in self.given.items())


def check_addons(given: object, plan: Plan, catalog: Catalog, held: Bought = ()) -> dict[str, int]:
    """Check requested quantities of add-ons beside a plan; return them by key.

    Args:
        given: requested quantities by key.
        plan: of the catalog, with its present add-ons or without.
        catalog: the plans file.
        held: add-ons of the subscription; it may give up one that the plan does not list any more.

    Raises:
        UnknownAddonError: the plan does not list one of them.
        AddonLimitError: a quantity is below 0, or above the ``max`` of its add-on and not the present one.
        QuantityError: a quantity is no integer.
        MeterkitError: ``given`` is no mapping.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise MeterkitError(
            f"addons: found a value of type {kind}; allowed is a mapping of add-ons to numbers"
        )
    checked: dict[str, int] = {}
    present = dict(plan.bought)
    for addon, quantity in cast("Mapping[object, object]", given).items():
        if not isinstance(addon, str) or addon not in plan.addons:
            if addon in dict(held) and quantity == 0:
                continue
            raise UnknownAddonError.of(addon, plan.key, plan.addons)
        limit = catalog.addons[addon].max_quantity or MAX_QUANTITY
        is_present = type(quantity) is int and quantity == present.get(addon)
        checked[addon] = present[addon] if is_present else _check_quantity(addon, quantity, limit)
    return checked


def _check_quantity(addon: str, quantity: object, limit: int) -> int:
    if type(quantity) is not int:
        found = (
            repr(quantity) if isinstance(quantity, float) else f"a value of type {type(quantity).__name__}"
        )
        raise QuantityError(
            f"addons: found {found:.40} of {addon!r:.80}; allowed is an integer from 0 to {limit}"
        )
    if not 0 <= quantity <= limit:
        raise AddonLimitError(addon, quantity=quantity, limit=limit)
    return quantity


def merge_addons(present: Bought, given: Mapping[str, int]) -> Bought:
    """Present add-ons with requested quantities; those left out stay, 0 removes one."""
    return tuple(sorted((addon, n) for addon, n in {**dict(present), **given}.items() if n))


def split_addons(
    present: Bought, given: Mapping[str, int], changes: Changes, *, fewer_wait: bool
) -> RequestedAddons:
    """Split requested quantities by the time at which they take effect.

    Args:
        present: add-ons now.
        given: requested quantities by key.
        changes: of the plans file: more is an upgrade, fewer is a downgrade.
        fewer_wait: whether fewer take effect when the period ends, whatever ``changes`` says.
    """
    have = dict(present)
    downgrade = "period_end" if fewer_wait else changes.downgrade
    now = {
        addon: n
        for addon, n in given.items()
        if (changes.upgrade if n > have.get(addon, 0) else downgrade) == "now"
    }
    return RequestedAddons(merge_addons(present, now), given)


def scheduled_addons(known: SubscriptionState, present: Bought, catalog: Catalog) -> Bought:
    """Add-ons after the scheduled changes of their quantities, whatever plan comes with them.

    Args:
        known: the stored subscription.
        present: its add-ons now.
        catalog: the plans file.
    """
    plan = catalog.plans.get(known.pending_plan or "")
    if known.pending_addons is None or plan is None:
        return present
    return kept_addons(present, known.pending_addons, plan)


def kept_addons(present: Bought, later: Bought, plan: Plan) -> Bought:
    """Add-ons after scheduled ones, without the scheduled plan that comes with them.

    An add-on that this plan does not list ends with it alone.

    Args:
        present: add-ons now.
        later: those that are scheduled.
        plan: the scheduled plan.
    """
    then = dict(later)
    return merge_addons(present, {addon: then.get(addon, 0) for addon in plan.addons})


def gives_up_unlisted(given: Mapping[str, int], plan: Plan, held: Bought) -> bool:
    """Whether a request names an add-on of the subscription that the plan does not list any more."""
    return any(addon in given and addon not in plan.addons for addon, _ in held)


def ended_addons(present: Bought, plan: Plan, catalog: Catalog) -> dict[str, int]:
    """Add-ons that end with a change to a plan, which does not list them, with their quantities."""
    return {
        addon: quantity for addon, quantity in present if addon in catalog.addons and addon not in plan.addons
    }
