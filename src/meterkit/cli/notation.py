"""Entitlements on a command line: ``included=5_000``, in the notation of the plans file. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import yaml

from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def parse_entitlement(entries: Iterable[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` entries; a value is YAML in flow style, so JSON will do too.

    Raises:
        MeterkitError: an entry cannot be read, or a key is given twice.
    """
    found: dict[str, object] = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key or not text:
            raise MeterkitError(
                f"override: found {entry!r:.80}; allowed is KEY=VALUE, such as included=5_000"
            )
        if key in found:
            raise MeterkitError(f"override: found {key!r:.80} twice; give it once")
        try:
            found[key] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            # A ValueError is of a date that there is not, or of a number beyond all bounds.
            raise MeterkitError(
                f"override: the value of {key:.80} cannot be read; write it as in the plans file, such as"
                " 'rate=[100/hour]'"
            ) from None
    return found


def format_entitlement(given: Mapping[str, object]) -> str:
    """Write an entitlement as it is given on a command line: ``included=5000 rate=[100/hour]``."""
    return " ".join(f"{key}={_flow(value)}" for key, value in sorted(given.items()))


def _flow(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()
