"""What a process tells of itself to those who ask for its metrics."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.applications import Starlette
from starlette.routing import Mount

from meterkit import metrics_app

if TYPE_CHECKING:
    from pathlib import Path

    from meterkit import MeterKit


async def told(kit: MeterKit) -> dict[str, float]:
    """Each metric by its name, with the value of its only label."""
    app = Starlette(routes=[Mount("/metrics", metrics_app(kit))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        text = (await client.get("/metrics/")).text
    return {
        " ".join((sample.name.removeprefix("meterkit_"), *sample.labels.values())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def said_by(program: str, directory: Path, *, plans: str) -> str:
    """What a program prints that runs in a directory with a plans file."""
    (directory / "plans.yaml").write_text(plans)
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout
