"""Versions of installed packages, for tests of what only younger ones have."""

from importlib.metadata import version


def installed(package: str) -> tuple[int, int]:
    """Major and minor version of a package."""
    major, minor, *_ = version(package).split(".")
    return int(major), int(minor)
