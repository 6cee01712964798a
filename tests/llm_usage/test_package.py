"""The package stands alone: few public names, imported when they are used, and nothing of meterkit."""

from __future__ import annotations

import subprocess
import sys

import llm_usage

NAMES_MAX = 12


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_there_are_few_public_names_and_each_is_there() -> None:
    assert len(llm_usage.__all__) <= NAMES_MAX
    assert printed("from llm_usage import *; print(*(name for name in dir() if name[0] != '_'))").split() == (
        sorted(llm_usage.__all__)
    )


def test_a_name_that_is_not_there_is_named() -> None:
    assert not hasattr(llm_usage, "usage_off")
    code = "import llm_usage\ntry: llm_usage.usage_off\nexcept AttributeError as error: print(error)"
    assert printed(code) == "module 'llm_usage' has no attribute 'usage_off'"


def test_no_other_package_is_loaded_and_nothing_before_its_use() -> None:
    code = (
        "import sys; before = set(sys.modules); import llm_usage\n"
        "print(*(name for name in sys.modules if name.startswith('llm_usage')))\n"
        "from llm_usage import *\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*loaded - sys.stdlib_module_names)"
    )
    assert printed(code).splitlines() == ["llm_usage", "llm_usage"]
