"""A difference between a subscription at Stripe and the plans file. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Drift", "DriftKind"]

DriftKind = Literal[
    "two_subscriptions",
    "unknown_price",
    "two_plans",
    "base_quantity",
    "missing_meter",
    "other_price",
    "metered_twice",
    "other_item",
    "seats",
    "currency",
    "interval",
    "billing_mode",
    "collection_paused",
    "draft_invoice",
]

_FOR_PEOPLE: Final[frozenset[DriftKind]] = frozenset(
    {"two_subscriptions", "unknown_price", "currency", "interval", "collection_paused", "draft_invoice"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One difference between a subscription at Stripe and the plans file.

    Attributes:
        subscription: ``sub_…``.
        kind: what differs.
        message: the difference in words, with what was found and what the plans file wants.
    """

    subscription: str
    kind: DriftKind
    message: str

    @property
    def can_repair(self) -> bool:
        """Whether ``repair`` mends it; of the others a person has to decide what the customer pays for."""
        return self.kind not in _FOR_PEOPLE

    def kept(self) -> dict[str, str]:
        """The stored form."""
        return asdict(self)

    @classmethod
    def of(cls, kept: Mapping[str, str]) -> Drift:
        """The inverse of :meth:`kept`."""
        kind = cast("DriftKind", kept["kind"])
        return cls(subscription=kept["subscription"], kind=kind, message=kept["message"])
