"""The pages of ``--help``, one for each command and group, and the parser that reads command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

import typer

from meterkit.cli.app import app

_EXAMPLE: Final = re.compile(r"^  (\S.*):\n((?:    .*\n)+)", re.MULTILINE)
COMMAND_LINE: Final[Any] = typer.main.get_command(app)
WIDTH: Final = 80


def help_pages() -> Iterator[tuple[str, str]]:
    """Each command and group, such as ``meterkit usage``, with its help."""
    waiting = [COMMAND_LINE.make_context("meterkit", [], resilient_parsing=True)]
    for context in waiting:
        context.terminal_width = WIDTH
        yield context.command_path, context.command.get_help(context)
        for name, part in getattr(context.command, "commands", {}).items():
            waiting.append(part.context_class(part, info_name=name, parent=context))


def examples_of(page: str) -> list[tuple[str, str]]:
    """The examples at the end of a page: the purpose of each, and what to type."""
    _, _, section = page.partition("\n\nExamples:\n")
    found = _EXAMPLE.findall(f"{section}\n")
    assert "".join(f"  {purpose}:\n{typed}" for purpose, typed in found) == f"{section.rstrip()}\n"
    return found


def parse_example(typed: str) -> str:
    """Parse an example as its command does, which does nothing; return the words of the command.

    Raises:
        Exception: an error of Typer, which says what it cannot read.
    """
    program, *words = shlex.split(typed.replace("\\\n", "").partition(" > ")[0])
    return " ".join((program, *read_command(words)))


def read_command(words: list[str]) -> list[str]:
    """Read a command line as Typer does, and run nothing; return the words of the command.

    Raises:
        Exception: an error of Typer, which says what it cannot read.
    """
    command = COMMAND_LINE
    path: list[str] = []
    while words and words[0] in getattr(command, "commands", {}):
        name, *words = words
        command = command.commands[name]
        path.append(name)
    command.make_context(path[-1] if path else "", words)
    return path
