"""boto3, which has no types."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

__all__ = ["BOTO3"]

BOTO3: Final[Any] = import_module("boto3")
