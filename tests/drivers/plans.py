"""Plans files of the tests: ``tests/plans/NAME.yaml``, and ones with the routes that a test names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meterkit.catalog import loads

if TYPE_CHECKING:
    from meterkit.catalog import Catalog

_FOLDER: Final = Path(__file__).parents[1] / "plans"


@cache
def plans_text(name: str) -> str:
    """The text of a plans file; a test may replace parts of it."""
    return (_FOLDER / f"{name}.yaml").read_text("utf-8")


def routed(*lines: str) -> Catalog:
    """A catalog of one plan with these lines as its routes."""
    written = "".join(f'  - {{match: "{line}"}}\n' for line in lines)
    return loads(
        "schema: 1\ncurrency: usd\ndefault_plan: free\nmeters: {requests: {unit: request}}\n"
        f"plans: {{free: {{price: {{amount_cents: 0, interval: month}}}}}}\nroutes:\n{written}"
    )
