"""Guard around the app's own estimator of input tokens."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from meterkit.catalog.models import QUANTITY_MAX

if TYPE_CHECKING:
    from llm_usage.estimate import InputEstimator
    from llm_usage.json_values import Table

_logger = logging.getLogger("meterkit.asgi")


def guard_estimator(estimate: InputEstimator | None) -> InputEstimator | None:
    """Wrap the app's own estimator: where it fails, it returns 0, which stands for meterkit's estimate."""
    if estimate is None:
        return None

    def safely(body: bytes | Table, model: str | None) -> int:
        tokens: object = None
        with suppress(Exception):
            tokens = estimate(body, model)
        if type(tokens) is int and tokens >= 0:
            return min(tokens, QUANTITY_MAX)
        _logger.error(
            "estimate_input raised, or gave no integer from 0 but a %s; the default estimate is taken",
            type(tokens).__name__,
        )
        return 0

    return safely
