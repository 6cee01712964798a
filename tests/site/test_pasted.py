"""Python of pages that say so is pasted into `python -m asyncio`, at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from test_readme import BLOCK, ROOT

PAGES: Final = ("docs/quickstart.md", "docs/recipes.md", "docs/tutorial-money.md")
PATIENCE_S: Final = 120.0


class Console:
    """`python -m asyncio` at a pseudo-terminal."""

    def __init__(self, directory: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if not self._pid:  # pragma: no cover - the child
            os.chdir(directory)
            environment = {**os.environ, "METERKIT_REDIS_URL": "memory://", "TERM": "dumb"}
            os.execve(sys.executable, [sys.executable, "-m", "asyncio"], environment)  # noqa: S606
        self.read_until(">>> ")

    def read_until(self, said: str) -> str:
        """Read what the terminal shows, until it shows a text."""
        shown, deadline = b"", time.monotonic() + PATIENCE_S
        while said.encode() not in shown:
            assert select.select([self._terminal], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(self._terminal, 65_536)
        return shown.decode(errors="replace")

    def paste(self, text: str) -> str:
        """Paste a text, and return what the terminal shows until it has run."""
        os.write(self._terminal, f"{text}\nprint('pasted', 'and', 'run')\n".encode())
        return self.read_until("pasted and run")

    def end(self) -> None:
        os.write(self._terminal, b"import os; os._exit(0)\n")
        os.waitpid(self._pid, 0)
        os.close(self._terminal)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.dear("a Python that imports meterkit and runs a page")
def test_f_332_a_page_can_be_pasted_in_its_order(page: str, tmp_path: Path) -> None:
    """F-332: on Python 3.11 and 3.12 blocks that were pasted were refused."""
    texts = BLOCK.findall((ROOT / page).read_text("utf-8"))
    assert "`python -m asyncio`" in (ROOT / page).read_text("utf-8")
    (tmp_path / "plans.yaml").write_text(next(text for kind, text in texts if kind == "yaml"))
    pasted = [text for kind, text in texts if kind == "python"]
    if page == "docs/quickstart.md":
        (tmp_path / "app.py").write_text(pasted.pop(0))
    console = Console(tmp_path)
    shown = [console.paste(text) for text in pasted]
    console.end()
    assert [text for text in shown if re.search(r"^(?:Traceback|\w*Error:)", text, re.MULTILINE)] == []
    # F-334: the quickstart ended without a bill.
    printed = "".join(text for kind, text in texts if kind == "text").splitlines()
    assert [line for line in printed if line not in "".join(shown)] == []
    assert bool(printed) == (page == "docs/quickstart.md")
