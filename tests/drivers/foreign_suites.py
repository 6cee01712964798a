"""The tests of other projects, from their source distributions, run with every app wrapped or unwrapped."""

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
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PLUGIN: Final = Path(__file__).parents[1] / "suites"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The tests of a project, of the release that is installed here or the one that is named.

    ``needed`` is what they import beside the packages that our tests need anyway, ``additions`` are files
    that its source distribution lacks, by their path.
    """

    project: str
    needed: tuple[str, ...]
    release: str | None = None
    additions: tuple[tuple[str, str], ...] = ()

    def fetch(self) -> Fetched:
        """Where it is on this machine; it is downloaded once, and skipped where there is no package index."""
        release = self.release or version(self.project)
        cache = ROOT / ".cache" / f"{self.project}-suite"
        home = cache / f"{release}-py{sys.version_info.major}.{sys.version_info.minor}"
        if not home.exists():
            cache.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=cache))
            try:
                self._download(fresh, release)
            except subprocess.CalledProcessError as error:
                shutil.rmtree(fresh)
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"the tests of {self.project} cannot be fetched: {error.stderr.decode()[-500:]}")
            try:
                fresh.rename(home)
            except OSError:
                # Another process was faster.
                shutil.rmtree(fresh)
        source = home / f"{self.project.replace('-', '_')}-{release}"
        return Fetched(source=source, packages=home / "packages")

    def _download(self, folder: Path, release: str) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        installed = folder / "constraints.txt"
        lines = (f"{found.name}=={found.version}\n" for found in distributions() if found.name != "meterkit")
        installed.write_text("".join(lines), encoding="utf-8")
        target = ["--target", str(folder / "packages"), "--constraint", str(installed)]
        packages = ["install", "--quiet", *target]
        source = ["download", "--quiet", "--no-deps", "--no-binary", self.project, "--dest", str(folder)]
        subprocess.run([*pip, *packages, *self.needed], check=True, capture_output=True)
        subprocess.run([*pip, *source, f"{self.project}=={release}"], check=True, capture_output=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            # Python 3.11.4 has brought the filter; what is unpacked comes from the package index.
            filtered: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            opened.extractall(folder, **filtered)  # noqa: S202 - see above
        for path, text in self.additions:
            (archive.with_suffix("").with_suffix("") / path).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    source: Path
    packages: Path

    def outcomes(self, wrapper: str, *arguments: str) -> dict[str, str]:
        """The outcome of each test, by its id; on asyncio, the only backend of meterkit.

        ``wrapper`` is ``module:name`` of a factory in ``tests/suites``; empty: nothing is wrapped.
        """
        with tempfile.TemporaryDirectory() as folder:
            found = Path(folder) / "outcomes.json"
            paths = [PLUGIN, ROOT / "src", self.packages, PLUGIN.parent]
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "PYTHONDONTWRITEBYTECODE": "",  # What one run has compiled, the next ones read.
                "SUITE_WRAPPER": wrapper,
                "SUITE_OUTCOMES": str(found),
            }
            environment.pop("PYTEST_ADDOPTS", None)
            command = [sys.executable, "-m", "pytest", "-q", "-p", "plugin", "-p", "no:cacheprovider"]
            command += ["-p", "no:looptime_plugin"]  # It is for pytest-asyncio, and fails without it.
            # Only how each test ends is asked for; to tell why, modules are compiled in another way.
            command.append("--assert=plain")
            run = subprocess.run(
                [*command, "-k", "not trio", *arguments],
                cwd=self.source,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode in (0, 1), run.stdout + run.stderr
            result: dict[str, str] = json.loads(found.read_text(encoding="utf-8"))
            return result


def differences(plain: dict[str, str], wrapped: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """The tests that end otherwise, with both outcomes."""
    return {
        name: (plain.get(name), wrapped.get(name))
        for name in sorted(plain.keys() | wrapped.keys())
        if plain.get(name) != wrapped.get(name)
    }
