"""The intents of a batch, as the store keeps them for eight days: of each what the one before has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["NONCE_DIGITS", "SEALED_DIGITS", "batch_text", "intents_in"]

NONCE_DIGITS: Final = 32
"""Hex digits that an identifier begins with: the same for all that is sealed of a customer at once."""

SEALED_DIGITS: Final = 28
"""Those of them that are the same for all customers that are sealed with it."""

# How many characters a word has from the one before, by what it begins with: no identifier begins so.
_SHARED: Final[Mapping[str, int]] = {".": NONCE_DIGITS + 1, ":": SEALED_DIGITS, "!": 0}


def batch_text(identifiers: Iterable[str]) -> str:
    """Identifiers as they are kept, a word each; see :func:`intents_in`."""
    words, before = list[str](), ""
    for identifier in sorted(identifiers):
        for mark, shared in _SHARED.items():
            if identifier[:shared] == before[:shared]:
                words.append(mark + identifier[shared:])
                break
        before = identifier
    return " ".join(words)


def intents_in(text: str) -> list[str]:
    """The identifiers that are kept; also those of releases before, which kept them as they are."""
    found, before = list[str](), ""
    for word in text.split(" "):
        shared = _SHARED.get(word[:1])
        before = word if shared is None else before[:shared] + word[1:]
        found.append(before)
    return found
