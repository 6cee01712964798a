"""What ``health`` finds under one check."""

from __future__ import annotations

from meterkit import Finding, MeterKit


async def looked_at(kit: MeterKit, check: str) -> tuple[str | None, list[Finding]]:
    """Return the amount that a check examined, and its findings."""
    health = await kit.health()
    return health.looked_at.get(check), [one for one in health.findings if one.check == check]


async def findings(kit: MeterKit, check: str) -> list[Finding]:
    return (await looked_at(kit, check))[1]
