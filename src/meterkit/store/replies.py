"""Reply codes of the decision script, and of others that confirm a customer's state.

The head of each script documents its replies: ``lua/decide.lua``, ``seal.lua``, ``correct_usage.lua``,
``rebuild_counters.lua``, ``set_level.lua``. The settle script has numbers of its own; see
:mod:`meterkit.redis.settlement_queue`.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final = 0
REFUSED: Final = 1
STALE: Final = 2
"""The store has another state of the customer, which is in the reply."""
CLOCK: Final = 3
"""The store's clock and the caller's are too far apart to decide."""
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
HELD: Final = frozenset({ALLOWED, _COUNTED})
"""Replies that hold quantities."""
