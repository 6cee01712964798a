"""Reply codes and limits of the scripts; ``lua/shared/constants.lua`` has the same names.

The head of each script documents its replies. The settle script has numbers of its own; see
:mod:`meterkit.redis.settlement_queue`.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final = 0
REFUSED: Final = 1
STALE: Final = 2
"""The store has another state of the customer, which is in the reply."""
BROKEN: Final = 4
"""A field of the counters is no integer."""
_COUNTED: Final = 5
"""Refused, but counted and held (shadow mode)."""
REPEAT: Final = 6
"""Allowed: the first request with its key was billed, so it holds no quantities."""
IN_FLIGHT: Final = 7
"""The first request with its key is in progress: refused, except in shadow mode."""
CHANGING: Final = 9
"""The customer's prices change, or have changed since its invoices were read."""
TOP_UP_BEGUN: Final = 1
"""Of ``move_auto_top_up``: the top-up may be bought."""
SYNC_REPEATED: Final = 0
"""Of ``queue_sync``: the event was queued before."""
SYNC_NO_ROOM: Final = 2
"""Of ``queue_sync``: the sync is queued without its note."""
INTENT_GONE: Final = 0
"""Of ``refuse_intent``: no such intent, or it is parked or dead."""
INTENT_REFUSED: Final = 1
INTENT_LEASED: Final = 2
"""Of ``refuse_intent``: a flusher is sending the intent."""
TOTALS_UNCOUNTABLE: Final = 3
"""Of ``refuse_intent``: a total of the customer is no integer."""
ITEM_SETTLED: Final = 1
"""Of ``settle_item``: this call has settled the item."""
LIVE_SUBJECTS_MOST: Final = 100000
"""The most subjects of a customer with counters that have not expired; see ``write_subject.lua``."""
HELD: Final = frozenset({ALLOWED, _COUNTED})
"""Replies that hold quantities."""
