"""The error that this package raises."""


class LlmUsageError(Exception):
    """Base of every error of this package."""
