"""The token usage of language models' answers: off responses as they pass by, off what SDKs return.

Knows nothing of requests, customers or the store.
"""

from __future__ import annotations

from meterkit.tokens.call_usage import CallUsage, Note, Source, estimated, filled
from meterkit.tokens.estimate import (
    MEDIA_PART_TOKENS,
    InputEstimator,
    estimate_input,
    estimate_request,
    guarded,
)
from meterkit.tokens.merging import each_once, join_reports
from meterkit.tokens.objects import Report, Reports, calls_of, report_of, usage_of
from meterkit.tokens.response import ResponseReader
from meterkit.tokens.tap import StreamTap

__all__ = [
    "MEDIA_PART_TOKENS",
    "CallUsage",
    "InputEstimator",
    "Note",
    "Report",
    "Reports",
    "ResponseReader",
    "Source",
    "StreamTap",
    "calls_of",
    "each_once",
    "estimate_input",
    "estimate_request",
    "estimated",
    "filled",
    "guarded",
    "join_reports",
    "report_of",
    "usage_of",
]
