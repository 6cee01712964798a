"""``meterkit demo``: a service, its customers and Stripe in small, checked to the unit."""

from __future__ import annotations

from meterkit.cli.demo.command import commands

__all__ = ["commands"]
