"""The one rule for the names of features that an app asks about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meterkit.errors import UnknownFeatureError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["check_feature"]


def check_feature(name: str, features: Collection[str]) -> None:
    """See that the plans file has a feature of this name.

    Raises:
        UnknownFeatureError: it has not.
    """
    if name not in features:
        raise UnknownFeatureError.of(name, features)
