"""What a unit costs by the model that used it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_SPECIAL: Final = frozenset("?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrices:
    """What a unit costs by model, in micro-credits, at least 1 each.

    Attributes:
        default: of a model that no pattern matches, and of usage that the app records without a model.
        models: glob patterns of model names, each with its price; the first one that matches counts.
    """

    default: int
    models: tuple[tuple[str, int], ...]

    def of(self, model: str | None) -> int:
        """What a unit costs that a model used; None: by no model; empty: by one whose name is not known."""
        if model == "":
            return self.highest
        if model is not None:
            for pattern, price in self.models:
                if fnmatchcase(model, pattern):
                    return price
        return self.default

    def covers(self, pattern: str) -> bool:
        """Whether one of the patterns surely matches each model that another pattern does."""
        return any(has_all_of(own, pattern) for own, _ in self.models)

    @property
    def highest(self) -> int:
        """What a unit costs at most, whatever the model."""
        return max(self.default, *(price for _, price in self.models))


def has_all_of(pattern: str, other: str) -> bool:
    """Whether a pattern matches all that another one does; only said where that is sure."""
    is_sure = not _SPECIAL & {*pattern} and "[" not in other
    return pattern == other or (is_sure and fnmatchcase(other, pattern))
