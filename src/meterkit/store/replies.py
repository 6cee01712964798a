"""The first element of a reply of the decision script, and of the others that confirm a customer's state.

The head of each script documents its replies: ``lua/decide.lua``, ``seal.lua``, ``correct_usage.lua``,
``rebuild_counters.lua``, ``set_level.lua``. The settle script has numbers of its own; see
:mod:`meterkit.redis.settlement_queue`.
"""

from __future__ import annotations

from typing import Final

ALLOWED: Final = 0
REFUSED: Final = 1
STALE: Final = 2
"""The store has another state of the customer, which comes with it."""
CLOCK: Final = 3
"""The store's clock and the caller's are too far apart to decide."""
BROKEN: Final = 4
"""A field that must be a whole number is none, says whatever confirms counters."""
_COUNTED: Final = 5
"""Refused, but counted and held (shadow mode)."""
REPEAT: Final = 6
"""Allowed: its first was billed, and it holds no quantities."""
IN_FLIGHT: Final = 7
"""Its first has not ended yet: refused, but in shadow."""
REFUSED_REPEAT: Final = 8
CHANGING: Final = 9
"""The customer's prices change now, or have changed since its invoices were read."""
HELD: Final = frozenset({ALLOWED, _COUNTED})
"""The request is held."""
