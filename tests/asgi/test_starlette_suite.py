"""Starlette's own tests, from its source distribution, run with every app wrapped (promise I8)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache" / "starlette-suite"
# What the suite imports beside the packages that meterkit's tests need anyway.
NEEDED = ("httpx2[zstd]", "itsdangerous", "jinja2", "opentelemetry-sdk", "python-multipart", "trio")
TRANSPARENT = ["wrappers:metered", "wrappers:metered_with_fields"]

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    source: Path
    packages: Path


@pytest.fixture(scope="module")
def suite() -> Suite:
    release = version("starlette")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = CACHE / f"{release}-py{python}"
    found = Suite(source=home / f"starlette-{release}", packages=home / "packages")
    if not home.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            fetch(fresh, release)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(fresh)
            if os.environ.get("CI"):
                raise
            pytest.skip(f"Starlette's tests cannot be fetched: {error.stderr.decode()[-500:]}")
        try:
            fresh.rename(home)
        except OSError:
            # Another process was faster.
            shutil.rmtree(fresh)
    return found


def fetch(folder: Path, release: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    installed = folder / "constraints.txt"
    installed.write_text(
        "".join(f"{found.name}=={found.version}\n" for found in distributions() if found.name != "meterkit"),
        encoding="utf-8",
    )
    packages = ["install", "--quiet", "--target", str(folder / "packages"), "--constraint", str(installed)]
    source = ["download", "--quiet", "--no-deps", "--no-binary", "starlette", "--dest", str(folder)]
    subprocess.run([*pip, *packages, *NEEDED], check=True, capture_output=True)
    subprocess.run([*pip, *source, f"starlette=={release}"], check=True, capture_output=True)
    with tarfile.open(folder / f"starlette-{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")


def outcomes(suite: Suite, wrapper: str, *, tests: str = "tests") -> dict[str, str]:
    """The outcome of each of Starlette's tests, by its id; on asyncio, the only backend of meterkit."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcomes.json"
        paths = [HERE / "starlette_suite", ROOT / "src", suite.packages]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SUITE_WRAPPER": wrapper,
            "SUITE_OUTCOMES": str(found),
        }
        environment.pop("PYTEST_ADDOPTS", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, "-k", "not trio", tests],
            cwd=suite.source,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode in (0, 1), run.stdout + run.stderr
        result: dict[str, str] = json.loads(found.read_text(encoding="utf-8"))
        return result


def differences(plain: dict[str, str], wrapped: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (plain.get(name), wrapped.get(name))
        for name in sorted(plain.keys() | wrapped.keys())
        if plain.get(name) != wrapped.get(name)
    }


@pytest.fixture(scope="module")
def plain(suite: Suite) -> dict[str, str]:
    return outcomes(suite, "")


def test_unwrapped_the_suite_runs(plain: dict[str, str]) -> None:
    # One test about file permissions fails for the superuser, whom containers often run as.
    ended = list(plain.values())
    assert ended.count("passed") > 500
    assert ended.count("failed") <= 1


@pytest.mark.parametrize("wrapper", TRANSPARENT)
def test_i8_starlettes_own_suite_does_not_notice(suite: Suite, plain: dict[str, str], wrapper: str) -> None:
    assert differences(plain, outcomes(suite, wrapper)) == {}


def test_the_suite_notices_a_wrapper_that_drops_a_header(suite: Suite, plain: dict[str, str]) -> None:
    tests = "tests/test_responses.py"
    expected = {name: outcome for name, outcome in plain.items() if name.startswith(tests)}
    wrapped = outcomes(suite, "wrappers:without_last_header", tests=tests)
    assert ("passed", "failed") in differences(expected, wrapped).values()
