"""Books of a customer after a period's end: each unit is on one invoice, or late, or its place is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.decisions.keys import meter_token

if TYPE_CHECKING:
    from drivers.period_ends import Ending

_PLACES = "pqlkdxztaf"


async def assert_books(at: Ending) -> None:
    """See that the reportable part of each closed period is somewhere, once."""
    admin = await at.kit.store.admin()
    found = await admin.ask(admin.client.hgetall(at.kit.store.keys.customer("acme").totals))
    totals = {name.decode(): int(value) for name, value in found.items() if value.isdigit()}
    for period in {name.partition("|")[0] for name in totals if name.endswith("|e")}:
        for meter in ("requests", "tokens"):
            counts = {
                name[-1]: value
                for name, value in totals.items()
                if name.startswith(f"{period}|{meter_token(meter)}")
            }
            assert counts.get("o", 0) == sum(counts.get(place, 0) for place in _PLACES), (period, counts)
