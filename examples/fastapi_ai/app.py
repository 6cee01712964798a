"""The chat service, metered: uvicorn app:app, then see README.md beside this file."""

from __future__ import annotations

from pathlib import Path

from chat import app

from meterkit import MeterKit, MeterMiddleware, identify

__all__ = ["app"]

kit = MeterKit(Path(__file__).with_name("plans.yaml"))
# A gateway in front of this service has authenticated the caller and sets the header.
app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
