"""What --help says, read as a person does: on a terminal of 80 columns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Final

import pytest

from drivers.command_line import Shell
from drivers.help_pages import WIDTH, examples_of, help_pages, parse_example
from drivers.sampled import some

COMMANDS: Final = {
    group: tuple(commands.split())
    for group, commands in {
        "": "demo check schema routes doctor worker flush outbox usage statement customers correct grants"
        " plans subscriptions reconcile recover audit revenue simulate storage stripe webhooks notify import",
        "customers": "show list link unlink set-plan override set-status delete history",
        "outbox": "list show redrive park drop",
        "grants": "add list void ledger",
        "plans": "migrate",
        "subscriptions": "show preview change seats addons cancel resume invoices sync check repair",
        "audit": "rebuild verify",
        "revenue": "spend",
        "storage": "recalculate",
        "stripe": "sync emulator",
        "webhooks": "list redrive",
        "notify": "list redrive preview",
        "import": "stripe",
    }.items()
}
EVERY: Final = [
    (),
    *(tuple(filter(None, (group, command))) for group, commands in COMMANDS.items() for command in commands),
]
SHOWN: Final = {
    *((), ("customers",), ("customers", "override"), ("grants", "add"), ("usage",), ("stripe", "emulator")),
    *(("subscriptions",), ("revenue",), ("worker",), ("outbox",)),
}


def helped(shell: Shell, *command: str) -> str:
    shell.environment["COLUMNS"] = "80"
    done = shell.run(*command, "--help")
    assert (0, "") == (done.code, done.err)
    return done.out


def listed(text: str, heading: str) -> dict[str, str]:
    """The entries of a section: what stands at the left, and its text with the lines put together."""
    found: dict[str, str] = {}
    entry = ""
    section = text.partition(f"\n{heading}:\n")[2].partition("\n\n")[0]
    for line in section.splitlines():
        if line[:3].strip():
            entry, _, begun = line.strip().partition("  ")
            found[entry] = begun.strip()
        else:
            found[entry] = f"{found[entry]} {line.strip()}".strip()
    return found


@pytest.mark.parametrize("command", some(EVERY, SHOWN), ids=" ".join)
def test_help_names_no_python_types_and_explains_everything(shell: Shell, command: tuple[str, ...]) -> None:
    # F-69: `CUSTOMER <str>`, `{CUSTOMER}`, `<int range>`, `0<=x<=1000`, arguments without a word.
    text, _, _ = helped(shell, *command).partition("\nExamples:\n")
    assert not re.search(r"[<>]|\{[A-Z]|\b(str|int|float)\b|list\[", text)
    assert max(map(len, text.splitlines())) <= 80
    for entry, told in (listed(text, "Arguments") | listed(text, "Options")).items():
        assert len(told) > 10, entry
    # F-69: "Run a service, three customers and a stand-in for Stripe,..."
    commands = listed(text, "Commands")
    assert tuple(commands) == COMMANDS.get(" ".join(command), ())
    assert [text for text in commands.values() if not text.endswith(".") or text.endswith("..")] == []


def test_each_help_ends_with_examples_of_its_command() -> None:
    pages = dict(help_pages())
    assert {f"meterkit {' '.join(command)}".strip() for command in EVERY} <= set(pages)
    for path, page in pages.items():
        assert max(map(len, page.splitlines())) <= WIDTH, path
        examples = examples_of(page)
        assert 1 <= len(examples) <= 3, path
        for purpose, typed in examples:
            assert len(purpose.split()) > 1, path
            assert f"{parse_example(typed)} ".startswith(f"{path} "), typed


def test_an_example_that_cannot_be_parsed_is_noticed() -> None:
    for typed, words in (
        ("usage ada --everything", "No such option"),
        ("usage ada --period soon", "found 'soon'"),
        ("usage ada bob", "unexpected extra argument"),
    ):
        with pytest.raises(Exception, match=words):
            parse_example(f"meterkit {typed}")


def test_it_is_told_for_a_short_option_too(shell: Shell) -> None:
    """F-137: `-h` was refused."""
    for command in ((), ("customers",), ("customers", "link")):
        text = helped(shell, *command)
        done = shell.run(*command, "-h")
        assert (0, text, "") == (done.code, done.out, done.err)


def test_options_that_change_nothing_are_taken_and_not_offered(shell: Shell) -> None:
    for command, without in (
        (("demo",), ("--plans", "--redis")),
        (("schema",), ("--plans", "--redis", "--json")),
        (("check",), ("--redis",)),
        (("stripe", "emulator"), ("--redis",)),
    ):
        offered = listed(helped(shell, *command), "Options")
        assert [name for name in without if any(entry.startswith(name) for entry in offered)] == [], command
        if command in {("schema",), ("check",)}:
            assert shell.run(*command, "--redis", "redis://nowhere").code == 0


def test_a_shell_completes_commands_options_and_names(shell: Shell) -> None:
    # F-69.
    shell.environment["_METERKIT_COMPLETE"] = "complete_bash"
    for words, at, offered in (
        ("meterkit cust", "1", ["customers"]),
        ("meterkit usage --p", "2", ["--period", "--plans"]),
        ("meterkit customers set-plan ada p", "4", ["pro"]),
        ("meterkit customers set-status ada p", "4", ["past_due", "paused"]),
        ("meterkit worker --log-format j", "3", ["json"]),
        ("meterkit plans migrate --usage l", "4", ["lines"]),
    ):
        shell.environment |= {"COMP_WORDS": words, "COMP_CWORD": at}
        done = shell.run()
        assert (0, offered, "") == (done.code, done.out.split(), done.err), words


BASH: Final = which("bash") or ""
INSTALL_AND_COMPLETE: Final = """\
meterkit --install-completion && . ~/.bashrc
COMP_WORDS=(meterkit customers set-plan ada p) COMP_CWORD=4
$(complete -p meterkit | sed 's/.*-F \\([^ ]*\\).*/\\1/') meterkit
echo "offered: ${COMPREPLY[*]}"
"""


@pytest.mark.skipif(not BASH, reason="there is no bash")
@pytest.mark.dear("bash starts the command line twice")
def test_bash_completes_after_the_installation(shell: Shell, tmp_path: Path) -> None:
    home, programs = tmp_path / "home", f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home.mkdir()
    done = subprocess.run(
        [BASH, "-c", INSTALL_AND_COMPLETE],
        cwd=shell.directory,
        env=shell.environment | {"HOME": str(home), "PATH": programs},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (0, "offered: pro") == (done.returncode, done.stdout.splitlines()[-1]), done.stderr


def test_a_number_out_of_bounds_is_refused_with_what_is_allowed(shell: Shell) -> None:
    for arguments, words in (
        ("grants add ada tokens=1 --id a --priority x", "a whole number from 0 to 1000"),
        ("flush --timeout -1", "found '-1'; allowed is a number of seconds from 0"),
        ("stripe emulator --port 99999", "a whole number from 0 to 65535"),
        ("stripe emulator --clock 2026-04-01", "an instant with a time zone"),
        ("stripe emulator --clock April", "found 'April'; allowed is an instant"),
    ):
        done = shell.run(*arguments.split())
        assert (2, "", True) == (done.code, done.out, words in " ".join(done.err.split())), done.err
