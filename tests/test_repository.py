"""What the repository tells contributors is true."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


def test_the_workflow_checks_each_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [line.removeprefix("Programming Language :: Python :: ") for line in project["classifiers"]]
    job = read(".github/workflows/ci.yml")["jobs"]["check"]
    assert [name for name in named if name.startswith("3.")] == job["strategy"]["matrix"]["python"]
    assert {"run": ".ci/run"} == job["steps"][-1]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_page_on_libraries_has_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    page = (ROOT / "docs/design/libraries.md").read_text("utf-8")
    table = page[: page.index("## What is written by hand")]
    missing = [one for one in wanted if not re.search(rf"\b{re.split(r'[^a-z0-9-]', one)[0]}\b", table)]
    assert missing == []
    assert [extra for extra in extras if f"`{extra}`" not in table] == []


def test_the_lowest_allowed_versions_have_no_known_advisory() -> None:
    """CVE-2025-27516 is fixed in jinja2 3.1.6; PYSEC-2026-4369 and 4371 in aiohttp 3.14.4."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    for name, floor in (("jinja2", "jinja2>=3.1.6"), ("aiohttp", "aiohttp>=3.14.4")):
        assert {one for one in wanted if one.startswith(name)} == {floor}


def test_each_template_asks_something() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= set(form), path
        assert all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.whole
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="not on Debian")
def test_a_browser_is_unpacked_without_root(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(ROOT / ".ci" / "chromium", tmp_path / ".ci")
    done = subprocess.run([script, "--unpack"], check=True, capture_output=True, text=True, timeout=600)
    browser = Path(done.stdout.strip())
    assert tmp_path in browser.parents
    told = subprocess.run([browser, "--version"], check=True, capture_output=True, text=True, timeout=60)
    assert "Chromium" in told.stdout


@pytest.mark.whole
def test_trying_prices_on_a_long_log_can_be_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/simulate.py"), "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "events served again in a second" in done.stdout, done.stderr


def test_disturbed_benchmarks_are_repeated_or_not_published() -> None:
    quiet = runpy.run_path(str(ROOT / "benchmarks/quiet.py"))
    readings = iter([10.0, 11.6, 10.0, 11.4, 10.0, 12.5])
    gauge = quiet["Gauge"](read=lambda: {"core": next(readings)}, tries=2, pause_s=0)
    measured = iter("abc")
    assert gauge.measure_part("repeated", lambda: next(measured)) == "b"
    result: dict[str, Any] = {"quiet": quiet["judge_readings"](gauge.readings), "skipped": {}}
    assert quiet["list_refusals"](result) == []
    assert quiet["format_verdict"](result).startswith("undisturbed: the bare app was at most 14 %")
    gauge.tries = 1
    assert gauge.measure_part("disturbed", lambda: next(measured)) == "c"
    result = {"quiet": quiet["judge_readings"](gauge.readings), "skipped": {"wrk": "is not installed"}}
    assert quiet["format_verdict"](result).startswith("DISTURBED: the bare app was at most 25 %")
    disturbed, incomplete, advice = quiet["list_refusals"](result)
    assert disturbed == "disturbed: disturbed: the bare app was 25 % above its lowest, not 15 % at most"
    assert incomplete == "incomplete: wrk: is not installed"
    assert "make bench" in advice
