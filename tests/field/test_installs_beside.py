"""pip and uv take meterkit beside other packages of an AI service at their newest."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
EXTRAS: Final = "stripe,embedded,memory,fastapi,cli,audit,notify,pages"

pytestmark = [pytest.mark.whole, pytest.mark.dear("resolves packages off the index")]


def newest(*requirements: str) -> dict[str, str]:
    """The versions that uv would install, by package."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"]
    found = subprocess.run(
        command, input="\n".join(requirements), stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(line.split("==") for line in found.stdout.splitlines() if "==" in line)


@pytest.mark.skipif(find_spec("uv") is None, reason="uv is not installed: make field")
@pytest.mark.parametrize(
    "beside",
    [
        "arq",
        "celery[redis]",
        "fastapi-users",
        "langchain-openai",
        "litellm[proxy]",
        "redisvl",
        "saq[redis]",
        "slowapi",
        "taskiq-redis",
    ],
)
def test_the_newest_is_installed_beside_meterkit(beside: str) -> None:
    name = beside.partition("[")[0]
    assert newest(beside, f"meterkit[{EXTRAS}] @ {ROOT.as_uri()}")[name] == newest(beside)[name]
