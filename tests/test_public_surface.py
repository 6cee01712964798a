"""What `import meterkit` gives, and what it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import meterkit

# Generous, for machines that do other things at the same time.
IMPORT_S_MAX = 0.2 if "CI" in os.environ else 0.04
NAMES = [
    "CallUsage",
    "Current",
    "CustomerError",
    "Decision",
    "MeterKit",
    "MeterMiddleware",
    "MeterkitError",
    "PlansError",
    "Problem",
    "QuantityError",
    "SettingsError",
    "StoreError",
    "UnknownMeterError",
    "current",
    "identify",
    "record",
    "record_usage",
    "tap",
    "usage_of",
]


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names_are_pinned_and_all_are_there() -> None:
    assert NAMES == meterkit.__all__
    assert NAMES == dir(meterkit)
    assert all(getattr(meterkit, name) is not None for name in NAMES)


def test_importing_meterkit_loads_nothing_of_third_parties() -> None:
    code = (
        "import sys; before = set(sys.modules); import meterkit;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - {'meterkit'} - sys.stdlib_module_names))"
    )
    assert said(code) == "[]"


def test_importing_meterkit_takes_no_time() -> None:
    # CPU, not time: whoever else is at work on the machine has no part in it.
    code = "import time; began = time.process_time(); import meterkit; print(time.process_time() - began)"
    assert min(float(said(code)) for _ in range(5)) < IMPORT_S_MAX


def test_the_installation_of_the_readme_loads_no_extra() -> None:
    code = (
        "import sys; from meterkit import MeterKit, MeterMiddleware, identify, record;"
        "print(sorted({'stripe', 'typer', 'fakeredis', 'fastapi', 'uvicorn', 'httpx'} & set(sys.modules)))"
    )
    assert said(code) == "[]"


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("meterkit") == meterkit.__version__


def test_the_version_is_looked_up_when_it_is_asked_for() -> None:
    code = (
        "import sys; before = set(sys.modules); import meterkit; early = set(sys.modules) - before;"
        "meterkit.__version__; print('importlib.metadata' in early, 'importlib.metadata' in sys.modules)"
    )
    assert said(code) == "False True"


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    assert not hasattr(meterkit, "Meterkit")


def test_the_package_is_typed_for_its_users() -> None:
    assert Path(meterkit.__file__).with_name("py.typed").is_file()
