"""Names in Redis, as docs/redis-keys.md has them, for tests that look into the store or damage it."""

from __future__ import annotations

from meterkit.decisions.keys import (
    FORMAT,
    HOOKS_SHARD,
    WITHOUT_TTL,
    job_digest,
    meter_field,
    meter_token,
    shard_of,
)

__all__ = ["FORMAT", "HOOKS_SHARD", "WITHOUT_TTL", "job_digest", "meter_field", "meter_token", "shard_of"]
