"""A program on a disk that is full: in a namespace with a small file system of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

MOUNT: Final = 'mount -t tmpfs -o size=512k tmpfs "$0" && cd "$0" && exec "$@"'
IN_A_NAMESPACE: Final = ("unshare", "--user", "--mount", "--map-root-user", "sh", "-c", MOUNT)
FILL: Final = """
from pathlib import Path

FILLED = Path("filled")

def fill():
    try:
        with FILLED.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
"""
"""Python: ``fill()`` leaves no room; without ``FILLED`` there is room again."""


def run_on_a_small_disk(folder: Path, program: str) -> list[str]:
    """What a program says whose working directory is a file system of half a megabyte."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*IN_A_NAMESPACE, str(folder), "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets its users make no file systems of their own")
    done = subprocess.run(
        [*IN_A_NAMESPACE, str(folder), sys.executable, "-c", FILL + program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
