"""Arguments of ``meterkit customers override``: an entitlement, and the subject that gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
import yaml

from meterkit.cli.options import date_or_instant
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from meterkit.customers.customers import Customer, Customers


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


def subject_override(
    customer: str, subject: str, meter: str | None, entries: list[str], until: str | None, *, clear: bool
) -> Callable[[Customers], Awaitable[Customer]]:
    """What replaces the overrides of a subject, ``KIND=ID``; with ``clear``: takes all of them back."""
    kind, _, name = subject.partition("=")
    if not name or clear == bool(entries) or (meter is None) != clear:
        raise typer.BadParameter("--subject KIND=ID needs METER and KEY=VALUE, or --clear without METER")
    limits = {} if meter is None else {meter: parse_entitlement(entries)}
    ends = date_or_instant("--until", until)
    return lambda customers: customers.subject(customer, **{kind: name}).override(limits, ends)
