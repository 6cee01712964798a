"""Work that needs an operator's attention, each with its cure; its checks are read once a minute."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from meterkit.decisions.periods import from_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from meterkit.insights.health_report import Health
    from meterkit.pages.operator_figures import Section
    from meterkit.pages.usage_figures import PagesKit

_URGENT_CHECKS: Final = frozenset(
    {
        "server",
        "rights",
        "persistence",
        "durability",
        "eviction",
        "shards",
        "stripe",
        "pending",
        "intents",
        "items",
        "throughput",
        "spool",
    }
)
"""Their findings lose usage, or keep it from being billed; those of ``_RULES`` say so themselves."""
_OPENS: Final = {"intents": "outbox", "items": "outbox"}
_FRESH_MS: Final = 60_000
_TIMEOUT_S: Final = 3.0


class AttentionItem(NamedTuple):
    """Work for an operator.

    Attributes:
        is_urgent: usage is lost or not billed until it is done.
        problem: the observation and its consequence.
        cure: what to do; commands stand between backticks.
        opens: the list that shows it; empty: none.
    """

    is_urgent: bool
    problem: str
    cure: str
    opens: str = ""


class _Rule(NamedTuple):
    """A figure above 0 that needs attention; the words if no check has reported it.

    Attributes:
        figure: section and name.
        one, several: the problem with one, and with ``{}`` of them.
        check: of findings about the same.
        examined: check that must have run for ``check`` to be reported; empty: the same.
        is_live: the figure is newer than findings.
    """

    figure: tuple[str, str]
    one: str
    several: str
    cure: str
    opens: str
    is_urgent: bool = False
    check: str = ""
    examined: str = ""
    is_live: bool = False


_RULES: Final = (
    _Rule(
        ("outbox", "dead"),
        "1 meter event is dead: its usage is not billed",
        "{} meter events are dead: their usage is not billed",
        "open the list for each reason, remove it, then redrive there or with `meterkit outbox redrive`",
        "outbox?of=dead",
        True,
        "dead",
        "undelivered",
        True,
    ),
    _Rule(
        ("outbox", "parked"),
        "1 meter event is parked: its usage is not billed",
        "{} meter events are parked: their usage is not billed",
        "open the list for each reason, remove it, then redrive there or with `meterkit outbox redrive`",
        "outbox?of=parked",
        True,
        "parked",
        "undelivered",
        True,
    ),
    _Rule(
        ("outbox", "unconfirmed"),
        "1 billing period is over, and Stripe has not counted all of its usage",
        "{} billing periods are over, and Stripe has not counted all of their usage",
        "`meterkit reconcile CUSTOMER --period DATE` shows the figures of each and what to do",
        "unconfirmed",
        True,
        "closes",
        is_live=True,
    ),
    _Rule(
        ("customers", "unlinked"),
        "1 customer has usage to bill and no Stripe customer",
        "{} customers have usage to bill and no Stripe customer",
        "run `meterkit customers link CUSTOMER STRIPE_CUSTOMER`",
        "unlinked",
        True,
        "unlinked",
    ),
    _Rule(
        ("webhooks", "dead"),
        "1 sync with Stripe is dead",
        "{} syncs with Stripe are dead",
        "open the list for each reason, remove it, then redrive there or with `meterkit webhooks redrive`",
        "webhooks",
        True,
        "webhooks",
    ),
    _Rule(
        ("messages", "dead"),
        "1 message to a customer is dead",
        "{} messages to customers are dead",
        "open the list for each reason, remove it, then redrive there or with `meterkit notify redrive`",
        "messages?of=dead",
        check="messages",
    ),
    _Rule(
        ("degraded", "day"),
        "In 1 minute of the last 24 hours requests were decided without the store",
        "In {} minutes of the last 24 hours requests were decided without the store",
        "the logs of the app and of the store have the cause; `meterkit doctor` checks the store",
        "degraded?of=day",
    ),
    _Rule(
        ("customers", "access_suspended"),
        "1 customer is suspended, because an invoice is unpaid",
        "{} customers are suspended, because invoices are unpaid",
        "ask them to pay; `meterkit customers set-status CUSTOMER active` gives access by hand",
        "access?of=suspended",
    ),
    _Rule(
        ("customers", "past_due"),
        "1 customer is past due",
        "{} customers are past due",
        "Stripe retries the payment and meterkit reminds them; ask those whose access ends next",
        "past_due",
    ),
    _Rule(
        ("spikes", "spiking"),
        "Usage of 1 customer is unusually high today",
        "Usage of {} customers is unusually high today",
        "ask whether it is meant; `meterkit customers override CUSTOMER METER 'rate=[100/minute]'` limits it",
        "spiking",
    ),
)


def attention_items(sections: Iterable[Section], report: Health | None) -> Sequence[AttentionItem]:
    """List what needs attention, urgent work first.

    Args:
        sections: the figures of the overview.
        report: of the checks; None: it could not be made.
    """
    values = {(section.name, figure.name): figure.value for section in sections for figure in section.figures}
    found = [item for rule in _RULES for item in _items_of_rule(rule, values.get(rule.figure), report)]
    if report is not None:
        known = {rule.check for rule in _RULES}
        found += [
            AttentionItem(
                finding.check in _URGENT_CHECKS,
                finding.problem,
                finding.cure,
                _OPENS.get(finding.check, ""),
            )
            for finding in report.findings
            if finding.check not in known
        ]
    return sorted(found, key=lambda item: not item.is_urgent)


def _items_of_rule(rule: _Rule, value: float | None, report: Health | None) -> list[AttentionItem]:
    """Apply a rule: findings of its check, or its own words if that check could not run."""
    if rule.is_live and not value:
        return []
    is_examined = rule.check and report is not None and (rule.examined or rule.check) in report.looked_at
    opens = rule.opens if value else ""
    if is_examined and report is not None:
        return [
            AttentionItem(rule.is_urgent, finding.problem, finding.cure, opens)
            for finding in report.findings
            if finding.check == rule.check
        ]
    if not value:
        return []
    problem = rule.one if value == 1 else rule.several.format(f"{value:,}")
    return [AttentionItem(rule.is_urgent, problem, rule.cure, opens)]


class DatedReport(NamedTuple):
    """A report with its time; ``report`` is None if the checks took too long."""

    at: datetime
    report: Health | None


class HealthReader:
    """Runs the checks of a kit, and remembers their report for a minute.

    Checks that scan all keys are left out. No task outlives a request: checks that take longer than three
    seconds are cancelled, and tried again a minute later.

    Args:
        kit: to check.
    """

    def __init__(self, kit: PagesKit) -> None:
        self._kit = kit
        self._last: DatedReport | None = None
        self._last_ms = 0

    async def read(self) -> DatedReport:
        """Return the report of the last minute, or make one."""
        now_ms = self._kit.store.now_ms()
        if self._last is None or not 0 <= now_ms - self._last_ms < _FRESH_MS:
            report: Health | None = None
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    report = await self._kit.health(scan_keys=False)
            except TimeoutError:
                pass
            self._last, self._last_ms = DatedReport(from_ms(now_ms), report), now_ms
        return self._last
