from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

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


def test_the_file_may_be_an_argument_an_option_or_a_variable(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").rename(directory / "other.yaml")
    shell.environment["METERKIT_PLANS"] = "other.yaml"
    for arguments, code in (
        (("other.yaml",), 0),
        (("--plans", "other.yaml"), 0),
        ((), 0),
        (("plans.yaml",), 1),
        (("plans.yaml", "--plans", "other.yaml"), 2),
        (("--bogus",), 2),
    ):
        assert shell.run("check", *arguments).code == code


def test_each_problem_is_one_line_without_a_traceback(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(BROKEN)
    done = shell.run("check")
    first, second = done.err.splitlines()
    assert (1, "") == (done.code, done.out)
    assert first.startswith("plans.yaml:3:1 default_plan: ")
    assert second.startswith("plans.yaml:10:18 plans.free.meters.requests.rate: found '5/huor'")
    done = shell.run("check", "--json")
    assert (1, False) == (done.code, done.json["ok"])
    assert [problem["line"] for problem in done.json["problems"]] == [3, 10]
    assert {"file", "line", "column", "path", "message"} == set(done.json["problems"][0])


def test_the_schema_is_printed(shell: Shell) -> None:
    found = shell.run("schema").json
    assert found["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert {"schema", "currency", "default_plan", "meters", "plans"} <= set(found["properties"])


def test_a_missing_extra_is_one_line_with_its_cure() -> None:
    code = "import sys; sys.modules['typer'] = None; from meterkit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "meterkit: the command line needs its extra: pip install 'meterkit[cli]'\n"


def test_notes_have_their_line_and_leave_the_file_valid(shell: Shell) -> None:
    """F-26, F-108."""
    done = shell.run("check")
    assert (0, "") == (done.code, done.err)
    first, *notes = done.out.splitlines()
    assert first == "plans.yaml: valid (2 meters, 2 plans, 1 route)"
    places = ["3:1 default_plan:", "6:3 meters.tokens:", "16:3 plans.pro:"]
    assert [" ".join(line.split()[:3]) for line in notes] == [f"note: plans.yaml:{place}" for place in places]
    found = shell.run("check", "--json").json["notes"]
    assert [3, 6, 16] == [note["line"] for note in found]
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


def test_only_meters_of_the_file_are_counted(shell: Shell, directory: Path) -> None:
    text = """schema: 1
currency: usd
default_plan: pro
meters: {pages: {unit: page, stripe: {event_name: pages}}}
prices: {sold: {default: 4, models: {"a-*": 2, "b-*": 3}}}
plans:
  pro:
    price: {amount_cents: 2900, interval: month}
    budget: {amount_cents: 5000}
    meters: {pages: {included: 0, overage: {bill: {price: prices.sold}}}}
"""
    (directory / "plans.yaml").write_text(text)
    done = shell.run("check")
    assert (done.code, done.out.splitlines()[0]) == (0, "plans.yaml: valid (1 meter, 1 plan, 0 routes)")


def test_add_ons_and_currencies_are_counted(shell: Shell, directory: Path) -> None:
    text = """schema: 1
currency: [usd, eur]
default_plan: pro
meters: {pages: {unit: page}}
addons: {more: {price: {amount_cents: {usd: 1, eur: 1}, interval: month}}}
plans: {pro: {price: {amount_cents: {usd: 0, eur: 0}, interval: month}, addons: [more]}}
"""
    (directory / "plans.yaml").write_text(text)
    assert shell.run("check").out == (
        "plans.yaml: valid (1 meter, 1 plan, 0 routes, 1 add-on, 2 currencies)\n"
    )
    found = shell.run("check", "--json").json
    assert (found["addons"], found["currencies"]) == (["more"], ["usd", "eur"])
    (directory / "plans.yaml").write_text(text.replace("eur: 1", "gbp: 1"))
    missing, extra = shell.run("check").err.splitlines()
    assert missing.startswith(
        "plans.yaml:5:25 addons.more.price.amount_cents.eur: eur is missing; allowed: a map"
    )
    assert extra.startswith(
        "plans.yaml:5:48 addons.more.price.amount_cents.gbp: 'gbp' is no currency of this"
    )


GATED = """\
schema: 1
currency: usd
default_plan: free
meters: {requests: {unit: request}}
features: [full]
routes:
  - {match: "POST /v1/chat", feature: full}
  - {match: "GET /v1/{path:path}"}
  - {match: "/v1/agents", feature: full}
plans:
  free: {price: {amount_cents: 0, interval: month}}
"""


def test_the_methods_of_gated_paths_are_listed(shell: Shell, directory: Path) -> None:
    """F-315: the feature holds for these, too, and nothing named them."""
    (directory / "plans.yaml").write_text(GATED)
    done = shell.run("check")
    assert "feature full: POST /v1/chat, and PUT, PATCH, DELETE, OPTIONS of its path\n" in done.out
    methods = ["PUT", "PATCH", "DELETE", "OPTIONS"]
    assert shell.run("check", "--json").json["gates"] == [
        {"route": "POST /v1/chat", "feature": "full", "methods": methods}
    ]


HOLDING: Final = """\
schema: 1
currency: usd
default_plan: free
meters: {output_tokens: {unit: token}, images: {unit: image, stripe: {event_name: images}}}
prices: {picture: {default: 1, models: {"big*": 3}}}
credits:
  usd:
    unit: money
    costs: {tokens: provider_prices, markup: 50%}
    unknown_model: deny
    models:
      our-1: {input_tokens: 2 per 1_000_000, output_tokens: 6 per 1_000_000}
      our-2: {input_tokens: 1 per 1_000_000, output_tokens: 9 per 1_000_000}
routes:
  - {match: "POST /ask", usage: openai, model: [our-1, our-2], reserve: {output_tokens: {default: 100_000}}}
  - {match: "POST /small", usage: openai, model: our-1, reserve: {output_tokens: {default: 100}}}
  - {match: "POST /new", usage: openai, model: my-new, reserve: {output_tokens: {default: 100}}}
  - {match: "POST /two", usage: auto, model: qwen/qwen3-32b, reserve: {output_tokens: {default: 1}}}
  - {match: "POST /draw", model: request, usage: openai, records: [images], reserve: {images: {default: 5}}}
plans:
  free:
    price: {amount_cents: 0, interval: month}
    budget: {amount_cents: 1000}
    meters: {images: {included: 5, overage: {bill: {price: prices.picture}}}}
"""


def test_f_321_check_says_what_a_request_may_hold(shell: Shell, directory: Path) -> None:
    (directory / "plans.yaml").write_text(HOLDING)
    lines = [line for line in shell.run("check").out.splitlines() if "holds up to" in line]
    several = lines.pop(3)
    assert several.startswith("POST /two: a request holds up to $0.00 of usd; no price of qwen/qwen3-32b")
    assert " (its `provider` may be: groq, " in several
    assert lines == [
        "POST /ask: a request holds up to $1.35 of usd, and $3.00 for each million tokens of input",
        "POST /small: a request holds up to $0.0009 of usd, and $3.00 for each million tokens of input",
        "POST /new: a request holds up to $0.00 of usd; no price of my-new is known, so it holds nothing",
        "POST /draw: a request holds up to $0.15 of a budget",
    ]
    first, *_ = shell.run("check", "--json").json["holds"]
    assert (first["route"], first["of"], first["amount"]) == ("POST /ask", "usd", "$1.35")
