"""Log lines about an intent that an operator may have to look at; docs/runbook.md has an entry for each."""

from __future__ import annotations

import logging

from meterkit.outbox.sealer import REPORTED

_logger = logging.getLogger("meterkit.delivery")


def log_parked(identifier: str, customer: str, why: str) -> None:
    """Log that an intent is parked."""
    _logger.warning("intent %s of customer %r is parked: %s", identifier, customer, why, extra=REPORTED)


def log_kept_parked(identifier: str, customer: str, why: str) -> None:
    """Log that a comparison leaves an intent parked: an operator must decide."""
    _logger.error("intent %s of customer %r stays parked: %s", identifier, customer, why, extra=REPORTED)


def log_not_comparable(identifier: str, customer: str, error: Exception) -> None:
    """Log that an intent cannot be compared with Stripe's summary."""
    _logger.warning(
        "intent %s of customer %r cannot be compared: %s", identifier, customer, error, extra=REPORTED
    )


def log_outcome(identifier: str, customer: str, outcome: str) -> None:
    """Log how the delivery of an intent ended, if not by acceptance."""
    _logger.error("intent %s of customer %r%s", identifier, customer, outcome, extra=REPORTED)
