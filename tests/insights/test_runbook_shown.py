"""The runbook names the check of each finding of doctor."""
# Internals: a pure table of all findings.

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from drivers.delivery import CATALOG
from drivers.kit_parts import parts_of
from meterkit import Drift, MeterKit
from meterkit.health import findings, spools
from meterkit.health.audit_log import added_up, undrained
from meterkit.health.audit_roots import without_root
from meterkit.health.backlogs import neglected, unconfirmed
from meterkit.health.store_servers import full, late, refusing, unkept
from meterkit.health.stripe_meters import look_at_meters
from meterkit.health.webhooks import Failing, drifting, given_up, overdue
from meterkit.insights.audit.draining import Backlog
from meterkit.outbox.closes import Close
from meterkit.outbox.intents import Undelivered
from meterkit.spool.directory import SpoolSeen
from meterkit.store.tasks import UpkeepSeen
from meterkit.testing import StripeEmulator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meterkit.health.findings import Finding
    from meterkit.spool.directory import SpoolState

PAGE: Final = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text("utf-8")
NOW: Final = datetime(2026, 11, 1, 0, 50, tzinfo=UTC)
NOW_MS: Final = int(NOW.timestamp() * 1000)
JUNE_END: Final = datetime(2026, 11, 1, tzinfo=UTC)
SPOOLS: Final = Path("/var/lib/meterkit")
HOUR_MS: Final = 3_600_000
STORE: Final = "the store at redis://10.0.0.5:6379/0"


def seen(name: str, size: int, hours: int, why: str = "") -> SpoolSeen:
    state: SpoolState = "refused" if why else "left"
    return SpoolSeen(path=SPOOLS / name, state=state, size=size, begun_ms=NOW_MS - hours * HOUR_MS, why=why)


TOO_OLD: Final = (
    "it was begun 9 days ago, and the store has forgotten what it has applied of it: sent again, it might be"
    " billed twice. Look whether its usage is recorded, record what is not by hand, and remove the file"
)
SEVEN: Final = Drift(
    subscription="sub_1",
    kind="base_quantity",
    message="the base price price_pro has quantity 7; the plans file sells 1",
)
SHOWN: Final[Sequence[Finding]] = [
    refusing(f"{STORE} failed: command not allowed when used memory > 'maxmemory'."),
    *full({"maxmemory": "2147483648", "used_memory": "2147001344"}),
    *late(0.21, 0.25),
    *findings.persistence("none", {}, appendfsync=None, is_accepted=False),
    unkept(f"{STORE} did not make a lease durable within 5 s; nothing is sent before it does"),
    *spools.unsent([seen("3f0c-8a1f.spool", 4_813_004, 3)], NOW_MS),
    *spools.unsent([seen("3f0c-11d2.spool", 90_210, 216, TOO_OLD)], NOW_MS),
    *undrained(48_112, 3 * HOUR_MS, is_kept=True),
    *added_up(Backlog(1_612_400, NOW_MS, 12)),
    *findings.overdue(1_204, 47 * 60_000),
    *findings.undelivered(
        [
            Undelivered(
                customer="ada", meter="tokens", quantity=1_500, state="dead", why="No such customer: 'cus_9'"
            )
        ]
    ),
    *findings.unlinked(["ada", "bob"]),
    *unconfirmed([Close(shard=0, customer="ada", end_ms=int(JUNE_END.timestamp() * 1000))]),
    *overdue(12, 9 * 60_000),
    *drifting({"ada": [SEVEN]}),
    *neglected(UpkeepSeen(NOW_MS - 5 * HOUR_MS, 0, 0, NOW_MS - 47 * 60_000), NOW_MS),
    *without_root(["in_1", "in_2"]),
    *given_up([Failing("cus_9", "it is linked to another customer", NOW_MS)]),
]


@pytest.mark.parametrize("finding", SHOWN, ids=lambda finding: finding.check)
def test_each_finding_says_its_problem_and_is_on_the_page(finding: Finding) -> None:
    assert finding.problem
    assert finding.cure
    assert f"`{finding.check}`" in PAGE


@pytest.mark.anyio
async def test_a_key_that_is_refused_is_found_and_on_the_page() -> None:
    async with StripeEmulator(api_keys=["sk_test_new"]).serve() as url:
        kit = MeterKit(
            CATALOG, redis_url="memory://", stripe_api_key="sk_test_old", stripe_api_base=url, flush=False
        )
        _, (finding,) = await look_at_meters(parts_of(kit))
    assert finding.problem.startswith("Stripe refuses the key: HTTP 401")
    assert f"`{finding.check}`" in PAGE
