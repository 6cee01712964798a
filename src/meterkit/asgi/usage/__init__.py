"""Readers of token usage: off responses as they pass by, off the objects and streams of provider SDKs."""

from __future__ import annotations

from meterkit.asgi.usage.calls import Calls
from meterkit.asgi.usage.estimate import (
    BILLED_BYTES_PER_TOKEN,
    MEDIA_PART_TOKENS,
    InputEstimator,
    asks_model,
    billed_input,
    estimate_input,
    estimate_request,
    guarded,
)
from meterkit.asgi.usage.figures import CallUsage, Note, Source, estimated, filled, quantities
from meterkit.asgi.usage.joined import joined
from meterkit.asgi.usage.objects import Report, Reports, calls_of, report_of, usage_of
from meterkit.asgi.usage.response import PIECE_BYTES, ResponseReader
from meterkit.asgi.usage.tap import StreamTap
from meterkit.asgi.usage.work import Work

__all__ = [
    "BILLED_BYTES_PER_TOKEN",
    "MEDIA_PART_TOKENS",
    "PIECE_BYTES",
    "CallUsage",
    "Calls",
    "InputEstimator",
    "Note",
    "Report",
    "Reports",
    "ResponseReader",
    "Source",
    "StreamTap",
    "Work",
    "asks_model",
    "billed_input",
    "calls_of",
    "estimate_input",
    "estimate_request",
    "estimated",
    "filled",
    "guarded",
    "joined",
    "quantities",
    "report_of",
    "usage_of",
]
