"""The limits of metadata: keys, their length, the length of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meterkit.testing.emulator.replies import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["refuse_long_metadata"]

# https://docs.stripe.com/metadata: "up to 50 key-value pairs", names of 40 and values of 500 characters.
KEYS_MAX: Final = 50
KEY_LENGTH_MAX: Final = 40
VALUE_LENGTH_MAX: Final = 500


def refuse_long_metadata(metadata: Mapping[str, str], *, param: str) -> None:
    """Refuse metadata beyond Stripe's limits, in the words that clients of Stripe have published.

    https://github.com/FlowFuse/flowfuse/issues/1948 has them for the number of keys.

    Raises:
        ApiError: it has too many keys, or a key or a value is too long.
    """
    for key, value in metadata.items():
        if len(key) > KEY_LENGTH_MAX:
            message = (
                f"Metadata keys can have up to {KEY_LENGTH_MAX} characters, but you passed in a key that is "
                f"{len(key)} characters. Invalid key: {key}"
            )
            raise ApiError(message, param=param)
        if len(value) > VALUE_LENGTH_MAX:
            message = (
                f"Metadata values can have up to {VALUE_LENGTH_MAX} characters, but you passed in a value "
                f"that is {len(value)} characters. Invalid value: {value}"
            )
            raise ApiError(message, param=f"{param}[{key}]")
    if len(metadata) > KEYS_MAX:
        message = (
            f"Metadata can have up to {KEYS_MAX} keys, but you've set {len(metadata)}. Email us at "
            "support+metadata@stripe.com for more information."
        )
        raise ApiError(message, param=param)
