"""Finding about models that were called and have no price, so that their calls cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.decisions.periods import from_ms
from meterkit.health.findings import Finding, named, single

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meterkit.assembly import Parts

CHECK: Final = "models"
_SHOWN_MAX: Final = 64


async def find_unpriced_models(parts: Parts) -> tuple[str, list[Finding]]:
    """Find the models that were called today and yesterday and have no price now.

    Raises:
        StoreError: the store does not answer.
    """
    compiled = parts.store.cache
    at = from_ms(compiled.now_ms())
    found = {
        model: calls
        for model, calls in (await parts.store.unpriced.read()).items()
        if not compiled.has_price(model, at)
    }
    return f"{len(found):,} without a price", unpriced_models(found)


def unpriced_models(calls: Mapping[str, int]) -> list[Finding]:
    """The models without a price, by how many calls of them cost nothing."""
    if not calls:
        return []
    models = named([f"{model[:_SHOWN_MAX]!r} (calls: {count:,})" for model, count in calls.items()])
    count = "1 model has" if len(calls) == 1 else f"{len(calls):,} models have"
    return single(
        check=CHECK,
        problem=f"{count} no price, so calls of today and yesterday cost nothing: {models}",
        cure="give their prices in the plans file, name the `provider` of the route, or refuse such models"
        " with `unknown_model: deny`",
    )
