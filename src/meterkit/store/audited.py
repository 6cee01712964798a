"""What is entered into the audit log, at once with what is counted; nothing where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.redis.scripts import Script
    from meterkit.store.used import Used
    from meterkit.store.views import CustomerView

__all__ = ["audit_keys", "audited_by", "told_of"]

_TOLD_MAX: Final = 400  # Bytes; a model's name comes from outside.
_TOLD: Final = ("model", "provider")


def audited_by(view: CustomerView) -> Script | None:
    """The script that settles and enters it; None: it is not entered, as are addresses of the anonymous."""
    return None if view.anonymous else view.cache.settle_audited


def audit_keys(view: CustomerView) -> Sequence[str]:
    """The keys that it has besides; none where nothing is entered."""
    return () if audited_by(view) is None else (view.cache.keys.audit(view.shard),)


def told_of(used: Used, occurred_ms: int | None) -> bytes:
    """What else is known, a line each: when it occurred, if not just now (ms), model, provider."""
    if occurred_ms is None and not used.dimensions:
        return b""
    names = (used.dimensions.get(name, "").replace("\n", " ") for name in _TOLD)
    text = "\n".join(("" if occurred_ms is None else str(occurred_ms), *names))
    return text.encode("utf-8", "replace")[:_TOLD_MAX]
