"""The runbook has an entry for each line of the log and each alert; alerts name exported metrics."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.applications import Starlette
from starlette.routing import Mount

from drivers.delivery import CATALOG
from drivers.health_findings import findings
from drivers.kit_parts import note_upkeep
from drivers.process_metrics import names_in, problems_in
from faults.refusals import PLANS, kit_at
from meterkit import MeterKit, metrics_app
from meterkit.catalog import loads
from meterkit.testing import StripeEmulator

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src" / "meterkit"
PAGE: Final = (ROOT / "docs" / "runbook.md").read_text("utf-8")
RULES: Final = ROOT / "docs" / "assets" / "alerts.yml"
STORING: Final = PLANS.replace(
    "\nroutes:",
    """
  disk: {unit: byte, kind: gauge}
storage: {gauge: disk, objects: {bucket: uploads, key: "{customer}/{path:path}"}}
routes:""",
)
DEFINED: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
LEVELS: Final = {"warning", "error", "exception", "critical"}
WARNERS: Final = {"warn", "_warn", "say_once", "_say_once"}
"""Functions of ours that log a warning."""

LOG_CALL: Final = re.compile(rf"\b({'|'.join(sorted(LEVELS | WARNERS | {'print_note'}))})\(")
"""A file without one writes no line, and need not be parsed."""

WORDS: Final = 40
"""So much of a line's beginning stands on the page; what comes then may be cut."""


def said(text: str) -> str:
    """A text without what makes it Markdown, or what differs from case to case."""
    return re.sub(r"\s*…[\s…]*", "…", re.sub(r"\s+", " ", text.replace("`", "")))


def words_of(node: ast.expr, function: ast.AST) -> str | None:
    """The words that a line of the log begins with; None: they come from elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(words_of(part, function) or "…" for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return words_of(node.value, function)
    if isinstance(node, ast.Name):
        for found in ast.walk(function):
            if isinstance(found, ast.Assign) and ast.unparse(found.targets[0]) == node.id:
                return words_of(found.value, function)
    return None


def sources() -> Iterator[tuple[str, str]]:
    """The modules that may write lines, by their names, and their code."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(("testing/", "cli/")) or name == "cli/delivery.py":
            yield name, path.read_text("utf-8")


def logged() -> Iterator[tuple[str, str | None]]:
    """Each call that writes a line at WARNING or above: its file, and its words; None: from elsewhere."""
    for name, text in sources():
        if LOG_CALL.search(text) is None:
            continue
        for call, function in _calls(ast.parse(text), None):
            if (place := _place_of_words(call)) is not None:
                yield name, words_of(call.args[place], function)


def _calls(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Each call inside a function, with the innermost function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and function is not None:
            yield child, function
        yield from _calls(child, child if isinstance(child, DEFINED) else function)


def _place_of_words(call: ast.Call) -> int | None:
    """Which argument has the words; None: it writes no such line."""
    function = call.func
    if isinstance(function, ast.Name):
        is_error = any(ast.unparse(word.value) == "logging.ERROR" for word in call.keywords)
        return 2 if function.id == "warn" else 0 if function.id == "print_note" and is_error else None
    if not isinstance(function, ast.Attribute) or not call.args:
        return None
    owner = ast.unparse(function.value)
    if function.attr in LEVELS and re.search(r"log|refusals", owner):
        return 0
    return 0 if function.attr in WARNERS and owner != "warnings" else None


def test_each_line_of_the_log_has_an_entry() -> None:
    page = said(PAGE)
    known = [(file, said(words)) for file, words in logged() if words and re.search(r"\w", words)]
    beginnings = [(file, words[:WORDS].strip(" …:;,")) for file, words in known]
    missing = [(file, words) for file, words in beginnings if words not in page]
    assert len(known) > 80
    assert missing == [], "docs/runbook.md says nothing of these lines of the log"


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_each_alert_is_in_its_part() -> None:
    told = set[tuple[str, str, str]]()
    for part in PAGE.split("\n### ")[1:]:
        title, _, text = part.partition("\n")
        anchor = re.sub(r"[^a-z0-9]+", "-", title.replace("'", "").lower()).strip("-")
        alerts = re.findall(r"^- \*\*Alerts?:\*\* (.+)$", text.partition("\n## ")[0], re.MULTILINE)
        told |= {(*alert, anchor) for line in alerts for alert in re.findall(r"`(\w+)` \((\w+)\)", line)}
    expected = set[tuple[str, str, str]]()
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "runbook.md"
        expected.add((rule["alert"], rule["labels"]["severity"], anchor))
        assert rule["annotations"]["summary"]
        assert problems_in(rule["expr"]) == []
        assert re.fullmatch(r"\d+[mhd]", rule.get("for", "0m"))
    assert told == expected
    assert len(expected) == len(rules())


@pytest.mark.anyio
@pytest.mark.usefixtures("valkey")
async def test_alerts_name_exported_metrics_and_their_labels(store_url: str, tmp_path: Path) -> None:
    plans = loads(STORING)
    async with kit_at(store_url, plans=plans, audit_url=f"sqlite:///{tmp_path}/audit.db") as kit:
        await note_upkeep(kit)
        app = Starlette(routes=[Mount("/metrics", metrics_app(kit))])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            text = (await client.get("/metrics/")).text
    samples = [sample for family in parse(text) for sample in family.samples]
    exported = {sample.name for sample in samples}
    states = {value for sample in samples for value in sample.labels.values()}
    for rule in rules():
        assert names_in(rule["expr"]) - exported == set(), rule["alert"]
        for value in re.findall(r'(?:state|way)=~?"([^"]+)"', rule["expr"]):
            assert set(value.split("|")) <= states, rule["alert"]


@pytest.mark.anyio
async def test_a_key_that_is_refused_is_found_and_on_the_page() -> None:
    async with StripeEmulator(api_keys=["sk_test_new"]).serve() as url:
        settings: dict[str, Any] = {"stripe_api_key": "sk_test_old", "stripe_api_base": url, "flush": False}
        async with MeterKit(CATALOG, redis_url="memory://", **settings) as kit:
            (finding,) = await findings(kit, "stripe")
    assert finding.problem.startswith("Stripe refuses the key: HTTP 401")
    assert f"`{finding.check}`" in PAGE
