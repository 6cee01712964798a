"""Readers of token usage: off responses as they pass by, off the objects and streams of provider SDKs."""

from __future__ import annotations

from meterkit.asgi.usage.calls import Calls
from meterkit.asgi.usage.estimate import (
    MEDIA_PART_TOKENS,
    InputEstimator,
    estimate_input,
    read_reserve_field,
)
from meterkit.asgi.usage.figures import CallUsage, Note, Source, estimated, quantities
from meterkit.asgi.usage.objects import usage_of
from meterkit.asgi.usage.response import ResponseReader
from meterkit.asgi.usage.tap import StreamTap

__all__ = [
    "MEDIA_PART_TOKENS",
    "CallUsage",
    "Calls",
    "InputEstimator",
    "Note",
    "ResponseReader",
    "Source",
    "StreamTap",
    "estimate_input",
    "estimated",
    "quantities",
    "read_reserve_field",
    "usage_of",
]
