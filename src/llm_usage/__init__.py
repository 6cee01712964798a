"""Usage of language model calls: read from any provider's responses, in bounded memory and time, and priced.

README.md beside this file shows how to use it. Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_usage.call_usage import CallUsage, sum_calls
    from llm_usage.listed_models import list_prices
    from llm_usage.llm_request import LlmRequest, read_request
    from llm_usage.objects import calls_of, usage_of
    from llm_usage.price_table import LlmUsageError
    from llm_usage.response import ResponseReader
    from llm_usage.socket_reader import SocketReader
    from llm_usage.tap import StreamTap

__all__ = [
    "CallUsage",
    "LlmRequest",
    "LlmUsageError",
    "ResponseReader",
    "SocketReader",
    "StreamTap",
    "calls_of",
    "list_prices",
    "read_request",
    "sum_calls",
    "usage_of",
]

_HOMES = {
    "CallUsage": "call_usage",
    "LlmRequest": "llm_request",
    "LlmUsageError": "price_table",
    "ResponseReader": "response",
    "SocketReader": "socket_reader",
    "StreamTap": "tap",
    "calls_of": "objects",
    "list_prices": "listed_models",
    "read_request": "llm_request",
    "sum_calls": "call_usage",
    "usage_of": "objects",
}
"""Public name to its module."""


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'llm_usage' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"llm_usage.{home}"), name)
    return found
