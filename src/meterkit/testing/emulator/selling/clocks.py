"""Stripe's test clocks: the time of the customers that were made with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.registry import Registry

if TYPE_CHECKING:
    from meterkit.testing.emulator.replies import JsonObject

__all__ = ["TestClock", "TestClocks"]

LIFE_S: Final = 30 * 86_400


@dataclass(slots=True, kw_only=True)
class TestClock:
    """A test clock.

    Attributes:
        created: Unix seconds of the emulator's own clock.
        frozen_time: Unix seconds; the time of its customers.
        target: where it advances to; None: it stands.
    """

    id: str
    created: int
    frozen_time: int
    name: str | None = None
    target: int | None = None

    def to_json(self) -> JsonObject:
        """Return the clock as Stripe shows it (https://docs.stripe.com/api/test_clocks/object)."""
        details: JsonObject = {}
        if self.target is not None:
            details["advancing"] = {"target_frozen_time": self.target}
        return {
            "id": self.id,
            "object": "test_helpers.test_clock",
            "created": self.created,
            "deletes_after": self.created + LIFE_S,
            "frozen_time": self.frozen_time,
            "livemode": False,
            "name": self.name,
            "status": "ready" if self.target is None else "advancing",
            "status_details": details,
        }


class TestClocks(Registry[TestClock]):
    """All test clocks of the emulated account, oldest first."""

    what = "test clock"

    def add(self, clock: TestClock) -> None:
        """Take over a clock."""
        self._by_id[clock.id] = clock

    def delete(self, clock: TestClock) -> None:
        """Forget a clock."""
        del self._by_id[clock.id]
