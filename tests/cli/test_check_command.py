from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.command_line import Shell

BROKEN = """\
schema: 1
currency: usd
default_plan: gold
meters:
  requests: {unit: request}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    meters:
      requests: {rate: 5/huor}
"""


def test_a_right_file_is_done_and_counted(shell: Shell) -> None:
    done = shell.run("check")
    assert (0, "plans.yaml: valid (2 meters, 2 plans, 1 route)", "") == (
        done.code,
        done.out.splitlines()[0],
        done.err,
    )


def test_the_file_may_be_an_argument_an_option_or_a_variable(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").rename(directory / "other.yaml")
    shell.environment["METERKIT_PLANS"] = "other.yaml"
    assert [0, 0, 0, 1] == [
        shell.run("check", "other.yaml").code,
        shell.run("check", "--plans", "other.yaml").code,
        shell.run("check").code,
        shell.run("check", "plans.yaml").code,
    ]


def test_two_different_files_are_wrong_usage(shell: Shell) -> None:
    assert shell.run("check", "plans.yaml", "--plans", "other.yaml").code == 2


def test_each_problem_is_one_line_without_a_traceback(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(BROKEN)
    done = shell.run("check")
    first, second = done.err.splitlines()
    assert (1, "") == (done.code, done.out)
    assert first.startswith("plans.yaml:3:1 default_plan: ")
    assert second.startswith("plans.yaml:10:18 plans.free.meters.requests.rate: found '5/huor'")


def test_problems_as_json(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(BROKEN)
    done = shell.run("check", "--json")
    assert (1, False, [3, 10]) == (
        done.code,
        done.json["ok"],
        [problem["line"] for problem in done.json["problems"]],
    )
    assert {"file", "line", "column", "path", "message"} == set(done.json["problems"][0])


def test_the_schema_is_printed(shell: Shell) -> None:
    found = shell.run("schema").json
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"schema", "currency", "default_plan", "meters", "plans"} <= set(found["properties"])


def test_a_missing_extra_is_one_line_with_its_cure() -> None:
    code = "import sys; sys.modules['typer'] = None; from meterkit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (2, "meterkit: the command line needs its extra: pip install 'meterkit[cli]'\n") == (
        done.returncode,
        done.stderr,
    )


def test_an_unknown_option_is_wrong_usage(shell: Shell) -> None:
    assert shell.run("check", "--bogus").code == 2


def test_notes_have_their_line_and_leave_the_file_valid(
    shell: Shell,
) -> None:
    """F-26, F-108."""
    done = shell.run("check")
    assert (0, "") == (done.code, done.err)
    first, *notes = done.out.splitlines()
    assert first == "plans.yaml: valid (2 meters, 2 plans, 1 route)"
    assert [" ".join(line.split()[:3]) for line in notes] == [
        "note: plans.yaml:3:1 default_plan:",
        "note: plans.yaml:16:3 plans.pro:",
    ]
    found = shell.run("check", "--json").json["notes"]
    assert [3, 16] == [note["line"] for note in found]
    assert {"file", "line", "column", "path", "kind", "message"} == set(found[0])


def test_a_report_of_many_problems_is_cut_and_counted(shell: Shell, directory: Path) -> None:
    """F-69: 60,000 unknown keys printed 13 MB."""
    keys = "".join(f"key{nth}: 1\n" for nth in range(60))
    (directory / "plans.yaml").write_text((directory / "plans.yaml").read_text() + keys)
    done = shell.run("check")
    lines = done.err.splitlines()
    assert (1, 51, "and 10 more problems") == (done.code, len(lines), lines[-1])
    found = shell.run("check", "--json").json
    assert (50, 10) == (len(found["problems"]), found["more"])
