"""Readers of token usage: off responses as they pass by, off the objects and streams of provider SDKs."""

from __future__ import annotations

from meterkit.asgi.usage.calls import Calls
from meterkit.asgi.usage.estimate import (
    MEDIA_PART_TOKENS,
    InputEstimator,
    estimate_input,
    estimate_request,
    guarded,
    read_reserve_field,
)
from meterkit.asgi.usage.figures import CallUsage, Note, Source, cut_short, estimated, quantities
from meterkit.asgi.usage.joined import joined
from meterkit.asgi.usage.objects import Report, Reports, calls_of, report_of, usage_of
from meterkit.asgi.usage.response import ResponseReader
from meterkit.asgi.usage.tap import StreamTap

__all__ = [
    "MEDIA_PART_TOKENS",
    "CallUsage",
    "Calls",
    "InputEstimator",
    "Note",
    "Report",
    "Reports",
    "ResponseReader",
    "Source",
    "StreamTap",
    "calls_of",
    "cut_short",
    "estimate_input",
    "estimate_request",
    "estimated",
    "guarded",
    "joined",
    "quantities",
    "read_reserve_field",
    "report_of",
    "usage_of",
]
