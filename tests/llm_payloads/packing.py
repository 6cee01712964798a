"""Content codings, by packages most of which say nothing of their types."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import zstandard

_brotli: Any = import_module("brotli")


def deflate(body: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(body) + packer.flush()


def brotli(body: bytes) -> bytes:
    packed: bytes = _brotli.compress(body, quality=4)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": lambda body: deflate(body, 15),
    "deflate, raw": lambda body: deflate(body, -15),
    "br": brotli,
    "zstd": zstandard.compress,
}
BR = ("brotli", "brotlicffi")
ZSTD = ("compression.zstd", "backports.zstd", "zstandard")
# Which packages are hidden so that the last one is used.
HIDDEN: dict[str, tuple[str, ...]] = {"br": BR[:1], "zstd": ZSTD[:2]}


def pack(body: bytes, *codings: str) -> tuple[bytes, bytes]:
    """The body in codings, and the header that names them."""
    for coding in codings:
        body = PACKERS[coding](body)
    return body, ", ".join(coding.partition(",")[0] for coding in codings).encode()


def hide(patch: pytest.MonkeyPatch, *names: str) -> None:
    """As if packages were not installed."""
    modules: Any = import_module("sys").modules
    for name in names:
        patch.setitem(modules, name, None)
    look_again(patch)


def look_again(patch: pytest.MonkeyPatch) -> None:
    """Have the packages looked for once more, and again when the test is over."""
    finders: Any = import_module("llm_usage.framing.content_codings")._FACTORY_FINDERS
    for coding in (b"br", b"zstd"):
        patch.setitem(finders, coding, cache(finders[coding].__wrapped__))
