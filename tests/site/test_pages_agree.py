"""F-136: pages state names and defaults as the code has them, so that no two contradict each other."""
# Internals: pages state constants of modules.

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from drivers.help_pages import read_command
from drivers.shown_blocks import keys_page, shown
from llm_usage.units import UNITS
from meterkit import MeterKit, MeterMiddleware, Settings
from meterkit.catalog import loads
from meterkit.decisions.keys import WITHOUT_TTL
from meterkit.health.audit_log import OVERDUE_MS
from meterkit.sync import SyncMeterKit

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")} | {
    "README.md": (ROOT / "README.md").read_text("utf-8")
}
SOURCE: Final = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
WORDS: Final = {"five minutes": 300.0, "a quarter of a second": 0.25}
PLANS: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
plans: {free: {price: {amount_cents: 0, interval: month}}}
"""


def found(pattern: str) -> Iterator[tuple[str, Any]]:
    """Each match on any page, with the page."""
    for name, text in PAGES.items():
        for match in re.findall(pattern, text):
            yield name, match


def default_of(variable: str) -> object:
    field = Settings.model_fields[variable.removeprefix("METERKIT_").lower()]
    return None if field.default_factory is not None else field.default


def test_every_setting_that_a_page_names_is_one() -> None:
    known = {f"METERKIT_{name.upper()}" for name in Settings.model_fields}
    assert {name for _, name in found(r"METERKIT_[A-Z_]+[A-Z]")} <= known


def test_defaults_of_settings_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `(METERKIT_\w+)` \| `([^`]+)` \|", PAGES["settings.md"], re.MULTILINE))
    assert len(rows) > 7
    for variable, told in rows.items():
        default = default_of(variable)
        said = {"METERKIT_PLANS": None, False: "off"}.get(variable, told)
        expected = "off" if default is False else f"{default:g}" if isinstance(default, float) else default
        assert said == (expected if expected is None else str(expected)), variable


def test_defaults_in_running_text_are_those_of_the_code() -> None:
    seen = 0
    for page, (variable, told) in found(r"`(METERKIT_\w+)` \(([^)]+)\)"):
        words = told.strip("`")
        value = WORDS.get(words)
        if value is None:
            number = re.fullmatch(r"([\d.]+)(?: s| seconds)?", words)
            value = float(number[1]) if number else words
        default = default_of(variable)
        assert value == (float(default) if isinstance(default, int | float) else default), (page, variable)
        seen += 1
    assert seen > 2


def test_every_command_that_is_shown_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    seen = 0
    for block in (block for block in shown() if block.language == "console"):
        for line in re.findall(r"^\$ meterkit (.+)$", block.text.replace("\\\n", ""), re.MULTILINE):
            words = shlex.split(line, comments=True)
            ends = [nth for nth, word in enumerate(words) if word in {"|", "&", "&&", ">", ";"}]
            read_command(words[: min(ends, default=len(words))])
            seen += 1
    assert seen > 50
    usage_error: Any = typer.BadParameter.__mro__[1]
    with pytest.raises(usage_error, match="No such option"):
        read_command(["usage", "ada", "--jsn"])


def test_every_problem_and_event_that_a_page_names_is_one() -> None:
    types = {name for _, name in found(r"urn:meterkit:problem:([a-z-]+)")}
    assert len(types) > 5
    assert {name for name in types if name not in SOURCE} == set()
    events = {name for _, name in found(r'kit\.on\("([a-z.]+)"\)')}
    assert {name for name in events if f'"{name}"' not in SOURCE} == set()


@pytest.mark.parametrize("block", ["dunning", "billing"])
def test_blocks_that_show_defaults_show_those_of_the_code(block: str) -> None:
    shown = {
        text
        for _, text in found(rf"(?m)^{block}: \{{.*\}}$")
        if "remind" in text or re.fullmatch(r"billing: \{(hold_invoice|late_usage): \w+\}", text)
    }
    assert shown
    default = loads(PLANS)
    for text in shown:
        read = loads(PLANS + text.replace("restrict_to: free", "restrict_to: default_plan"))
        assert getattr(read, block) == getattr(default, block), text


@pytest.mark.parametrize("kind", [MeterKit, MeterMiddleware])
def test_every_argument_has_its_line(kind: type) -> None:
    section = re.split(r"^## ", PAGES["python.md"], flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(f"{kind.__name__}\n"))
    arguments = set(inspect.signature(kind).parameters) - {"app", "settings", "self"}
    assert {name for name in arguments if f"| `{name}` |" not in text} == set()


def test_code_without_a_loop_lacks_what_its_page_says() -> None:
    _, _, section = PAGES["background-jobs.md"].partition("It has everything of [`MeterKit`]")
    lacking = set(re.findall(r"`(\w+)`", section.partition(", without")[0]))
    async_kit = MeterKit(loads(PLANS), redis_url="memory://", flush=False)
    with async_kit.sync() as kit:
        has = {name for name in dir(kit) if not name.startswith("_")}
    assert {name for name in dir(async_kit) if not name.startswith("_")} - has - {
        "contact",
        "estimate_input",
        "store",
    } == lacking
    assert SyncMeterKit.__name__ in PAGES["background-jobs.md"]


def test_the_first_page_links_every_guide() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    guides = set(re.findall(r"([a-z-]+\.md)$", nav, re.MULTILINE)) - {"index.md", "changelog.md"}
    guides = {name for name in guides if f"/{name}" not in nav}  # Those of a folder hang below its index.
    assert len(guides) > 30
    assert guides - set(re.findall(r"\(([a-z-]+\.md)\)", PAGES["index.md"])) == set()


def test_the_alert_of_the_audit_log_comes_when_its_page_says() -> None:
    rules = (ROOT / "docs" / "assets" / "alerts.yml").read_text("utf-8")
    rule = rules.split("alert: MeterkitAuditLogWaits")[1]
    found = re.search(r"> (\d+)\n\s+for: (\d+)m", rule)
    assert found is not None
    assert int(found[1]) * 1000 == OVERDUE_MS == 15 * 60_000
    assert found[2] == "5"
    assert "once an entry has waited for 15 minutes;\n- an [alert]" in PAGES["audit.md"]
    assert "five minutes later" in PAGES["audit.md"]


def test_a_delivered_intent_takes_what_was_measured() -> None:
    (told,) = re.findall(r"\[about (\d+) bytes\]\(benchmarks", PAGES["deployment.md"])
    measured = re.findall(r"(?m)^\| v\S+ \d?.* \| (\d+) \|$", PAGES["benchmarks.md"])
    assert measured
    assert all(int(told) * 0.8 < int(each) < int(told) * 1.25 for each in measured)


# A constant of the code, its value, and a page with what it says of it.
FIGURES: Final = """
store.settlement_spool:_UNWRITTEN_MAX               67_108_864      runbook.md     64 MiB wait in memory
store.settlement_spool:_UNWRITTEN_MAX               67_108_864      reliability.md 64 MiB wait
store.settlement_spool:SPOOL_BYTES_MAX    1_073_741_824   runbook.md     each spool may grow to 1 GiB
store.settlement_spool:SPOOL_BYTES_MAX    1_073_741_824   reliability.md grown to 1 GiB
redis.reconnector:_PAUSE_MAX_S           0.5             runbook.md     twice a second
redis.reconnector:_PAUSE_MAX_S           0.5             reliability.md every half second
redis.server:_BEHIND_MAX_S               60              testing.md     more than a minute behind
delivery.delivery_outcome:CLOCKS_APART_S 60              runbook.md     Stripe's by more than a minute
delivery.delivery_outcome:CLOCKS_APART_S 60              billing.md     by more than a minute
delivery.restored_store_comparer:_LAG_MS 120_000         runbook.md     held back for two minutes
delivery.restored_store_comparer:_LAG_MS 120_000         reliability.md After two minutes
delivery.period_closer:_IN_TIME_MS       2_700_000       runbook.md     45 minutes later
delivery.period_closer:_IN_TIME_MS       2_700_000       billing.md     confirmed 45 minutes after
delivery.period_closer:_GIVEN_UP_MS      3_110_400_000   runbook.md     gives up 36 days after
delivery.period_closer:_GIVEN_UP_MS      3_110_400_000   billing.md     hourly for 36 days
insights.audit.rebuilding:_LONG_OVER_MS  3_110_400_000   audit.md       until 36 days after the period's end
insights.audit.rebuilding:_LONGEST_MS    34_560_000_000  audit.md       one of the last 400 days
insights.audit.draining:FOLD_BEYOND_ENTRIES 50_000 audit.md       more than 50,000 wait
insights.audit.draining:FOLD_BEYOND_ENTRIES 50_000 runbook.md     more than 50,000 entries in a shard
insights.audit.draining:_PAGE            500             audit.md       in batches of 500, inserts
insights.audit.draining:_LEAST_AGE_MS    2_000           audit.md       at least two seconds old
delivery.flusher_setup:_PAGE       500             audit.md       in batches of up to 500, and
delivery.flusher_setup:_WAITING_MOST 10_000          audit.md       up to 10,000 rows wait
notify.event_handlers:_PATIENCE_S        30              runbook.md     longer than 30 seconds
store.customer_notices:AGAIN_AFTER_MS    60_000          runbook.md     again a minute later, ten times in all
store.customer_notices:TIMES_MOST        10              runbook.md     again a minute later, ten times in all
subscriptions.webhooks.sync_worker:ATTEMPTS_MAX 12            runbook.md     refused twelve times
subscriptions.webhooks.sync_worker:ATTEMPTS_MAX 12            webhooks.md    refused twelve times
catalog.plans_file_watcher:_CHECK_EVERY_S 1.5 runbook.md within two seconds of its correction
catalog.plans_file_watcher:_CONFIRM_AFTER_S 0.5 recipes.md changed plans file within two seconds
catalog.plans_file_watcher:_CONFIRM_AFTER_S 0.5 plans-file.md changed plans file within two seconds
llm_usage.framing.incremental:EVENT_BYTES_MAX 16_384 llm.md         JSON body above 16 KiB it keeps only
llm_usage.framing.incremental:EVENT_BYTES_MAX 16_384 llm.md         more than 16 KiB or 20 responses
llm_usage.json_values:_BRACKETS_MAX 256 llm.md         with more than 256 brackets, meterkit
health.worker_queues:ROOM_BYTES                 67_108_864      deployment.md  ◆ at least 64 MiB are free
health.store_servers:_FULL               0.9             deployment.md  ◆ less than 90% of `maxmemory` is used
""".strip()


@pytest.mark.parametrize("figure", FIGURES.splitlines(), ids=lambda figure: figure.split()[0])
def test_figures_are_those_of_the_code(figure: str) -> None:
    place, value, page, words = figure.split(maxsplit=3)
    module, _, name = place.partition(":")
    assert getattr(
        import_module(module if module.startswith("llm_usage.") else f"meterkit.{module}"), name
    ) == float(value)
    assert words in " ".join(PAGES[page].split())


def test_the_page_of_models_lists_every_unit_of_the_price_table() -> None:
    section = PAGES["llm.md"].partition("### All units\n")[2].partition("\n### ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`(\w+)`", "\n".join(rows))) == UNITS


def test_the_page_on_keys_and_the_written_list_say_the_same() -> None:
    rows = keys_page()
    assert len(rows) >= 20
    for pattern, _, ttl in rows:
        example = pattern.pattern.replace(r"\d+", "7").replace(".+", "ada").replace("\\", "").rstrip("$")
        listed = any(re.match(allowed, example) for allowed in WITHOUT_TTL)
        told = ttl == "as the grants" or "none" in ttl
        assert listed == told, example
