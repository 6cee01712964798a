"""RESP, the protocol of Redis, as far as a request is concerned."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["pack", "pack_each", "pack_numbers", "unpack"]


def pack_each(parts: Iterable[str | int | bytes]) -> bytes:
    """Bulk strings, without the head that counts them."""
    out: list[bytes] = []
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def pack(*parts: str | int | bytes) -> bytes:
    """A whole request."""
    return b"*%d\r\n%b" % (len(parts), pack_each(parts))


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Whole numbers below 2^53 as doubles, as the scripts take them."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpack(request: bytes) -> list[bytes]:
    """The parts of a whole request: the inverse of :func:`pack`."""
    end = request.index(b"\r\n")
    parts: list[bytes] = []
    at = end + 2
    for _ in range(int(request[1:end])):
        end = request.index(b"\r\n", at)
        start, length = end + 2, int(request[at + 1 : end])
        parts.append(request[start : start + length])
        at = start + length + 2
    return parts
