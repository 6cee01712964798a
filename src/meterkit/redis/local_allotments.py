"""Port of a lane to the allotments of its event loop, which are of a later room."""

from __future__ import annotations

from typing import Any, Protocol


class LocalAllotments(Protocol):
    """Allotments of one event loop: requests admitted locally; see :mod:`meterkit.store.allotment`."""

    granted: int
    returned: int

    @property
    def unused(self) -> int:
        """Unused units."""
        ...

    def admit(self, decision: Any, route: Any) -> tuple[Any, list[int] | None]:
        """Admit a request by an allotted unit: the decision, and a reply; None: no unit is left."""
        ...

    def use_unit(self, decision: Any) -> tuple[Any, list[int]] | None:
        """Use an allotted unit: its decision, and a reply; None: none is left."""
        ...

    def settle(self, settlement: Any) -> None:
        """Settle such a request, together with others."""

    def flush(self) -> None:
        """Send what waits to be settled."""

    def close(self) -> None:
        """Return unused units and send what waits; allot nothing from now on."""
