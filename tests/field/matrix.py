"""The table of the field tests: a line for each deployment, printed when all have run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from field.deployments import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one deployment, by meter."""

    deployment: Deployment
    served: Mapping[str, int]
    recorded: Mapping[str, int]
    billed: Mapping[str, int]


class Matrix:
    """All that was tried."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(
        self,
        deployment: Deployment,
        *,
        served: Mapping[str, int],
        recorded: Mapping[str, int],
        billed: Mapping[str, int],
    ) -> None:
        self._rows.append(Row(deployment=deployment, served=served, recorded=recorded, billed=billed))

    def lines(self) -> Iterator[str]:
        """A line for each deployment and each figure that differs."""
        for row in self._rows:
            equal = row.served == row.recorded == row.billed
            where = f"{row.deployment.server:18} {row.deployment.loop:8} {row.deployment.lifespan:8}"
            figures = "  ".join(f"{meter} {quantity}" for meter, quantity in row.served.items())
            yield f"{where} served = recorded = billed  {figures}" if equal else f"{where} DIFFERS  {row}"
