"""A settlement as a spool keeps it: what was used, by whom and when, whatever the plan is when it is sent.

No prompt, body or credential is in it: customer, quantities, model and provider, and keys of the store.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from meterkit.redis.settling import Sent
from meterkit.store.held import Correction, Held, Mark
from meterkit.store.settlement import Settlement
from meterkit.store.used import Used

if TYPE_CHECKING:
    from meterkit.store.views import CustomerCache

__all__ = ["Spooled", "read", "size_of", "write"]

_NUMBERED_BYTES: Final = 64
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode


class Spooled(NamedTuple):
    """One record of a spool.

    Attributes:
        number: that its settlement is sent under, by its shard's producer of the file.
        settlement: what is to be applied.
        sent: under which producer and number it was sent before, if it was: it may have been applied.
    """

    number: int
    settlement: Settlement
    sent: Sent | None


def write(settlement: Settlement, number: int, at_ms: int, sent: Sent | None) -> bytes:
    """A settlement as a record.

    Args:
        settlement: what is to be applied.
        number: see :class:`Spooled`.
        at_ms: when it happened.
        sent: see :class:`Spooled`.
    """
    before = b"" if sent is None else b',"sent":' + _to_json(sent).encode()
    return b'{"n":%d,"at":%d%b,%b' % (number, at_ms, before, settlement.spooled or _unnumbered(settlement))


def size_of(settlement: Settlement) -> int:
    """About how many bytes its record takes."""
    return _NUMBERED_BYTES + len(settlement.spooled or _unnumbered(settlement))


def _unnumbered(settlement: Settlement) -> bytes:
    """The end of a record: what is the same whenever the settlement happens. Most happen again and again."""
    held, used, correction, mark = settlement.held, settlement.used, settlement.correction, settlement.mark
    found: dict[str, Any] = {"c": settlement.customer}
    more: dict[str, Any] = {
        "anonymous": settlement.view.anonymous,
        "occurred": settlement.occurred_ms,
        "recorded": dict(used.recorded),
        "rated": dict(used.rated),
        "measured": None if used.measured is None else dict(used.measured),
        "dimensions": dict(used.dimensions),
        "held": [dict(held.quantities), held.concurrency, held.slot] if held != Held() else None,
        "correction": [dict(correction.reserved), sorted(correction.rates), correction.at_ms]
        if correction.reserved
        else None,
        "event": settlement.event_key,
        "mark": mark,
    }
    # Measured nothing is not the same as not told apart.
    found.update(
        {name: value for name, value in more.items() if value or (name == "measured" and value is not None)}
    )
    settlement.spooled = end = _to_json(found).encode()[1:]
    return end


def read(record: bytes, cache: CustomerCache) -> Spooled:
    """The inverse of :func:`write`; what is said of it goes by the state that is in force when it is sent.

    Raises:
        ValueError, KeyError, TypeError: it is not what this release writes.
    """
    from_json = cast("dict[str, Any]", json.loads(record))
    get = from_json.get
    held, correction, mark, sent = get("held"), get("correction"), get("mark"), get("sent")
    settlement = Settlement(
        cache.get(from_json["c"], anonymous=bool(get("anonymous"))),
        held=Held() if held is None else Held(held[0], tuple(held[1]), held[2]),
        used=Used(get("recorded", {}), get("rated", {}), get("dimensions", {}), get("measured")),
        correction=Correction()
        if correction is None
        else Correction(correction[0], frozenset(correction[1]), correction[2]),
        event_key=get("event"),
        occurred_ms=get("occurred", from_json["at"]),
        rated_ms=from_json["at"],
        mark=None if mark is None else Mark(*mark),
    )
    return Spooled(from_json["n"], settlement, None if sent is None else Sent(*sent))
