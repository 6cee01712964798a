"""The API versions of Stripe that a request may name in ``Stripe-Version``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.replies import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_version"]

# https://docs.stripe.com/changelog: the releases whose objects have the shapes of the emulator's.
RELEASES: Final[Mapping[str, tuple[str, ...]]] = {
    "basil": ("2025-03-31", "2025-04-30", "2025-05-28", "2025-06-30", "2025-07-30", "2025-08-27"),
    "clover": ("2025-09-30", "2025-10-29", "2025-11-17", "2025-12-15", "2026-01-28", "2026-02-25"),
    "dahlia": ("2026-03-25", "2026-04-22", "2026-05-27", "2026-06-24", "2026-07-29", "2026-08-26"),
    "endive": ("2026-09-30", "2026-10-28"),
}
KNOWN: Final = frozenset(
    f"{date}.{suffix}" for name, dates in RELEASES.items() for date in dates for suffix in (name, "preview")
)
# Releases had no names before 2024-09-30.acacia (https://docs.stripe.com/api/versioning).
ACACIA: Final = ("2024-09-30", "2024-10-28", "2024-11-20", "2024-12-18", "2025-01-27", "2025-02-24")
UNNAMED: Final = re.compile(r"20(1[1-9]|2[0-4])-[0-1][0-9]-[0-3][0-9]")


def read_version(given: str | None, *, default: str) -> str:
    """Return the API version of a request: the one that it names, else the account's default.

    https://github.com/beam-community/stripity-stripe/issues/606 has Stripe's words.

    Raises:
        ApiError: Stripe has no such version, or its objects have shapes that are not emulated.
    """
    if given is None:
        return default
    # Previews may name features: `2025-03-31.preview; feature_beta=v1`.
    version = given.partition(";")[0].strip()
    if version in KNOWN:
        return version
    if UNNAMED.fullmatch(version) or version in {f"{date}.acacia" for date in ACACIA}:
        raise ApiError(f"Stripe-Version {version} is older than 2025-03-31.basil and not emulated.")
    raise ApiError(f"Invalid Stripe API version: {given}")
