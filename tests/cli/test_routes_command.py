from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivers.command_line import Shell
from drivers.plans import plans_text

APP = """\
from fastapi import FastAPI

from meterkit import MeterKit, MeterMiddleware, identify

print("an app that prints")
app = FastAPI(openapi_url=None)


@app.get("/healthz")
def healthz(): ...


@app.post("/v1/chat/completions/{conversation_of_the_customer}")
def chat(): ...


@app.get("/v1/files/{name}")
def files(): ...


def make():
    print("a function that prints")
    kit = MeterKit("app.yaml", redis_url="redis://127.0.0.1:1")
    return MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))


async def bare(scope, receive, send): ...
"""
PLANS = plans_text("routes_command")
FITTING = PLANS.replace('"DELETE /v1/', '"GET /v1/')


@pytest.fixture
def api(directory: Path, shell: Shell) -> Shell:
    """A shell in the directory of an app; its plans file does not fit its routes, that of its kit does."""
    (directory / "shop").mkdir()
    (directory / "shop" / "api.py").write_text(APP)
    (directory / "plans.yaml").write_text(PLANS)
    (directory / "app.yaml").write_text(FITTING)
    shell.environment["COLUMNS"] = "80"
    return shell


def test_unmatched_routes_and_lines_exit_with_1(api: Shell) -> None:
    done = api.run("routes", "shop.api:app", "--json")
    assert done.code == 1
    healthz, chat, files = done.json["routes"]
    matched = {"methods": ["GET"], "host": None, "path": "/healthz", "line": "GET /healthz"}
    assert healthz == {**matched, "adds": {}, "metered": "exempt", "parts": []}
    assert chat["metered"] == "feature full_ai; consume 1 requests; usage auto"
    assert chat["adds"] == {"output_tokens": "usage", "requests": "consume"}
    assert (files["line"], files["metered"]) == (None, "unmetered")
    assert files["parts"] == [{"line": "GET /v1/files/public", "metered": "exempt"}]
    why = "the app has no route for it"
    idle = [{"plans_file": "plans.yaml", "line": "DELETE /v1/files/{name}", "why": why}]
    assert done.json["idle_lines"] == idle
    without = "shop.api:app has no MeterMiddleware; these are the plan routes of plans.yaml that its"
    assert without in done.err
    assert "an app that prints" in done.err


GONE_LINE = '  - {match: "GET /gone"}\n'
DELETE_LINE = '  - {match: "DELETE /v1/files/{name}", consume: {requests: 1}}\n'


@pytest.mark.parametrize(
    ("plans", "unmetered", "idle"),
    [
        pytest.param(FITTING, [], [], id="all fit"),
        pytest.param(PLANS.replace(DELETE_LINE, ""), ["/v1/files/{name}"], [], id="no plan route"),
        pytest.param(
            FITTING.replace("routes:\n", 'routes:\n  - {match: "GET /gone"}\n'),
            [],
            ["GET /gone"],
            id="no route",
        ),
    ],
)
def test_an_unmatched_route_or_line_exits_with_1(
    api: Shell, directory: Path, plans: str, unmetered: list[str], idle: list[str]
) -> None:
    (directory / "plans.yaml").write_text(plans)
    done = api.run("routes", "shop.api:app", "--json")
    assert [one["path"] for one in done.json["routes"] if one["line"] is None] == unmetered
    assert [one["line"] for one in done.json["idle_lines"]] == idle
    assert done.code == bool(unmetered or idle)


def test_mcp_lines_stand_below_their_endpoints_route(api: Shell, directory: Path) -> None:
    app = APP.replace('@app.get("/healthz")', '@app.post("/mcp")\ndef mcp(): ...\n\n\n@app.get("/healthz")')
    (directory / "shop" / "api.py").write_text(app)
    lines = """routes:
  - {match: "MCP tools/call search*", consume: {requests: 2}}
  - {match: "MCP tools/call", consume: {requests: 1}}
  - {match: "MCP /other *"}
  - {match: "POST /mcp", exempt: true}
"""
    (directory / "plans.yaml").write_text(PLANS.replace("routes:\n", lines))
    done = api.run("routes", "shop.api:app", "--json")
    endpoint = next(route for route in done.json["routes"] if route["path"] == "/mcp")
    assert endpoint["line"] == "POST /mcp"
    assert endpoint["parts"] == [
        {"line": "MCP tools/call search*", "metered": "consume 2 requests"},
        {"line": "MCP tools/call", "metered": "consume 1 requests"},
    ]
    idle = [line["line"] for line in done.json["idle_lines"]]
    assert idle == ["MCP /other *", "DELETE /v1/files/{name}"]


def test_the_table_fits_a_terminal_and_names_what_does_not_fit(api: Shell) -> None:
    done = api.run("routes", "shop.api:app")
    assert done.code == 1
    table, _, rest = done.out.partition("plans.yaml: ")
    assert max(map(len, table.splitlines())) <= 80
    assert "GET     /v1/files/{name}" in table
    assert rest.startswith(
        "the plan route 'DELETE /v1/files/{name}' matches no route: the app has no route for it\n"
    )
    assert "unmetered: 1; " in rest


def test_the_plans_file_of_the_apps_kit_is_the_one_that_counts(api: Shell) -> None:
    done = api.run("routes", "shop.api:make", "--factory", "--json", "--plans", "plans.yaml")
    assert (0, []) == (done.code, done.json["idle_lines"])
    assert done.json["routes"][2]["line"] == "GET /v1/files/{name}"
    assert "--plans is ignored: the app's MeterMiddleware has a plans file" in done.err
    assert "a function that prints" in done.err


HOSTS = """\
from starlette.applications import Starlette
from starlette.routing import Host, Route, Router


def page(request): ...


operators = Router([Route("/v1/files/public", page)])
app = Starlette(routes=[Host("operators.example", operators), Route("/v1/files/{name}", page)])
"""


def test_a_route_of_another_host_takes_no_part_of_a_route(api: Shell, directory: Path) -> None:
    (directory / "shop" / "hosts.py").write_text(HOSTS)
    theirs, files = api.run("routes", "shop.hosts:app", "--json").json["routes"]
    public = {"line": "GET /v1/files/public", "metered": "exempt"}
    assert (theirs["host"], theirs["line"], files["parts"]) == ("operators.example", public["line"], [public])


PAGES = """\
from starlette.applications import Starlette
from starlette.routing import Mount, Route


def page(request): ...


app = Starlette(routes=[Mount(path, routes=[Route("/", page)]) for path in ("/usage", "/operator")])
"""


def test_a_path_that_is_redirected_to_a_mount_is_no_idle_line(api: Shell, directory: Path) -> None:
    (directory / "shop" / "pages.py").write_text(PAGES)
    lines = """routes:
  - {match: "/usage", always: true}
  - {match: "/usage/{path:path}", always: true}
  - {match: "/operator", exempt: true}
  - {match: "/operator/{path:path}", exempt: true}
  - {match: "/reports", always: true}
"""
    (directory / "plans.yaml").write_text(PLANS.replace("routes:\n", lines))
    idle = {line["line"] for line in api.run("routes", "shop.pages:app", "--json").json["idle_lines"]}
    assert idle & set(re.findall(r'"(.+)"', lines)) == {"/reports"}


FILES = """\
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from meterkit import MeterKit, MeterMiddleware, identify

app = Starlette(routes=[Mount("/files", StaticFiles(directory="."))])
kit = MeterKit("plans.yaml", redis_url="redis://127.0.0.1:1")
wrapped = MeterMiddleware(app, kit=kit, identify=identify.header("x-customer-id"))
"""
GATED = """\
routes:
  - {match: "GET /files/reports/{path:path}", feature: full_ai}
  - {match: "GET /files/{path:path}", exempt: true}
"""


def test_each_reading_of_a_path_is_shown_with_its_line(api: Shell, directory: Path) -> None:
    (directory / "shop" / "files.py").write_text(FILES)
    (directory / "plans.yaml").write_text(PLANS.replace("routes:\n", GATED))
    done = api.run("routes", "shop.files:wrapped", "--readings", "/files/public/..%2freports/a.pdf", "--json")
    assert done.code == 0
    assert (done.json["method"], done.json["line"]) == ("GET", None)
    assert done.json["metered"] == "refused with 400"
    handed, *others = done.json["readings"]
    public = {"line": "GET /files/{path:path}", "metered": "exempt"}
    assert handed == {"path": "/files/public/../reports/a.pdf", "reading": "as handed on", **public}
    gated = {"line": "GET /files/reports/{path:path}", "metered": "feature full_ai"}
    assert {"path": "/files/reports/a.pdf", "reading": "plain", **gated} in others

    shown = api.run("routes", "shop.files:app", "--readings", "GET /files/a.pdf")
    assert shown.code == 0
    assert "GET /files/{path:path}" in shown.out
    assert shown.out.endswith("decided by: GET /files/{path:path}\n")
    shown = api.run("routes", "shop.files:wrapped", "--readings", "/files/../files/reports/a.pdf")
    assert shown.out.endswith("the readings match different plan routes: the request is refused with 400\n")
    shown = api.run("routes", "shop.files:wrapped", "--readings", f"/files/{'../' * 600}a.pdf", "--json")
    assert shown.json["metered"] == "refused with 400"
    assert [one["reading"] for one in shown.json["readings"]] == ["as handed on", "too many"]
    shown = api.run("routes", "shop.files:wrapped", "--readings", "PUT /files/a%1b.pdf")
    assert "/files/a\\x1b.pdf" in shown.out
    assert shown.out.endswith("no plan route matches: the request passes undecided\n")


def test_an_app_that_cannot_be_had_is_told_of_in_a_line(api: Shell, directory: Path) -> None:
    (directory / "broken.py").write_text("def fail():\n    raise ZeroDivisionError('none left')\nfail()\n")
    (directory / "planless.py").write_text("from meterkit import MeterKit\nMeterKit('none.yaml')\n")
    (directory / "unset.py").write_text("from meterkit import MeterKit\nMeterKit(redis_url='http://a')\n")
    for name, code, words in (
        ("shop.api", 2, "found 'shop.api'; allowed is MODULE:NAME"),
        ("shop.apo:app", 2, "there is no module 'shop.apo'; searched in"),
        ("shop/api.py:app", 2, "; did you mean 'shop.api'?"),
        ("shop.api:ap", 2, "shop.api has no 'ap'; did you mean 'app'?"),
        ("shop.api:make", 2, "a function without arguments; if it returns the app, add --factory"),
        ("shop.api:bare", 1, "the app does not list its routes: found a value of type function"),
        ("broken:app", 1, "broken cannot be imported: ZeroDivisionError: none left ("),
        ("planless:app", 1, "none.yaml: the plans file cannot be read"),
        ("unset:app", 2, "redis_url (METERKIT_REDIS_URL or REDIS_URL): found the scheme 'http'"),
    ):
        done = api.run("routes", name)
        assert (code, "") == (done.code, done.out)
        assert words in " ".join(done.err.replace("│", " ").split())
        assert "Traceback" not in done.err


def test_what_makes_an_app_must_be_a_function_that_makes_one(api: Shell, directory: Path) -> None:
    (directory / "odd.py").write_text("app = 1\ndef make():\n    raise OSError('no disk')\n")
    for name, code, words in (
        ("odd:app", 2, "--factory: odd:app is not a function"),
        ("odd:make", 1, "odd:make cannot make the app: OSError: no disk ("),
    ):
        done = api.run("routes", name, "--factory")
        assert (done.code, words in done.err) == (code, True)


TWO = """\
from starlette.applications import Starlette
from starlette.routing import Mount

from meterkit import MeterKit, MeterMiddleware, identify
from shop.api import app as chat, make

kit = MeterKit("plans.yaml", redis_url="redis://127.0.0.1:1")
more = MeterMiddleware(chat, kit=kit, identify=identify.header("x-customer-id"))
app = Starlette(routes=[Mount("/one", make()), Mount("/two", more)])
"""


def test_limits_that_no_line_asks_for_are_named(api: Shell, directory: Path) -> None:
    """F-200."""
    limited = FITTING.replace("unit: request}", "unit: request}, words: {unit: word}").replace(
        "interval: month}}", "interval: month}, meters: {words: {included: 5}}}"
    )
    (directory / "app.yaml").write_text(limited)
    done = api.run("routes", "shop.api:make", "--factory")
    assert "app.yaml:15:62 plans.free.meters.words: no route asks for words" in " ".join(done.out.split())
    shown = api.run("routes", "shop.api:make", "--factory", "--json").json["unasked_limits"]
    assert [note.partition(" ")[0] for note in shown] == ["app.yaml:15:62"]
    (directory / "shop" / "two.py").write_text(TWO)
    (directory / "plans.yaml").write_text(limited.replace("words", "pages"))
    shown = api.run("routes", "shop.two:app", "--json").json["unasked_limits"]
    assert {note.partition(":")[0] for note in shown} == {"app.yaml", "plans.yaml"}


BILLED = """\
from fastapi import FastAPI
from starlette.routing import Route

from meterkit import MeterKit, MeterMiddleware, identify
from meterkit.fastapi import Current, billing_router
from meterkit.starlette import stripe_webhook


def payer(caller: Current) -> str:
    return caller.customer


app = FastAPI(openapi_url=None)
kit = MeterKit("plans.yaml", redis_url="redis://127.0.0.1:1")
app.include_router(billing_router(kit, customer=payer, origins=["https://app.example"]), prefix="/pay")
app.router.routes.append(Route("/stripe", stripe_webhook(kit), methods=["POST"]))
app.add_middleware(MeterMiddleware, kit=kit, identify=identify.header("x-customer-id"))
"""


def billed(directory: Path, *, top: str = "") -> str:
    """The plans file of an app with billing routes; no route is exempt."""
    (directory / "shop" / "billed.py").write_text(BILLED)
    lines = 'routes:\n  - {match: "/pay/{path:path}", always: true}\n  - {match: "*"}\n'
    plans = top + PLANS.partition("routes:\n")[0] + lines + "plans:" + PLANS.partition("\nplans:")[2]
    (directory / "plans.yaml").write_text(plans)
    return plans


def test_webhooks_of_stripe_that_a_line_refuses_are_named(api: Shell, directory: Path) -> None:
    plans = billed(directory)
    shown = api.run("routes", "shop.billed:app", "--json").json["refused_webhooks"]
    assert [note.partition(" takes ")[0] for note in shown] == [
        "the plan route '/pay/{path:path}'",
        "the plan route '*'",
    ]
    for path, note in zip(("/pay/webhooks/stripe", "/stripe"), shown, strict=True):
        line = f'{{match: "POST {path}", exempt: true}}'
        assert note.endswith(f"write before it `{line}`")
        plans = plans.replace("routes:\n", f"routes:\n  - {line}\n")
        assert "takes Stripe's webhooks" in " ".join(api.run("routes", "shop.billed:app").out.split())
        (directory / "plans.yaml").write_text(plans)
    assert api.run("routes", "shop.billed:app", "--json").json["refused_webhooks"] == []


def test_billing_routes_that_a_limit_refuses_are_named(api: Shell, directory: Path) -> None:
    """Who had used up the free plan got 429 at the checkout, and nothing said so."""
    always = '{match: "/pay/{path:path}", always: true}'
    plans = billed(directory)
    for served in (plans, plans.replace("always: true", "exempt: true")):
        (directory / "plans.yaml").write_text(served)
        assert api.run("routes", "shop.billed:app", "--json").json["refused_billing"] == []
    (directory / "plans.yaml").write_text(plans.replace(f"  - {always}\n", ""))
    (note,) = api.run("routes", "shop.billed:app", "--json").json["refused_billing"]
    assert note.startswith("the plan route '*' takes the billing routes, and may refuse them to customers")
    assert note.endswith(f"owe; write before it `{always}`")
    assert "takes the billing routes" in " ".join(api.run("routes", "shop.billed:app").out.split())
    (directory / "shop" / "billed.py").write_text(BILLED.replace(', prefix="/pay"', ""))
    (note,) = api.run("routes", "shop.billed:app", "--json").json["refused_billing"]
    always = always.replace("/pay", "/billing")  # Below "/" it would free the whole app of its limits.
    assert note.endswith(f"owe; mount them at /billing, and write before it `{always}`")


def test_webhooks_that_an_anonymous_plan_limits_are_named(api: Shell, directory: Path) -> None:
    billed(directory, top="anonymous: {plan: free, by: ip}\n")
    (note,) = api.run("routes", "shop.billed:app", "--json").json["refused_webhooks"]
    assert note == (
        "the plan route '*' takes Stripe's webhooks, and Stripe is no customer, so they are limited by"
        " address, as anonymous requests on the plan 'free'; write before it"
        ' `{match: "POST /stripe", exempt: true}`'
    )


LIVE = """\
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute


async def talk(socket): ...


app = Starlette(routes=[WebSocketRoute("/v1/live", talk), WebSocketRoute("/v1/open", talk)])
"""


def test_websockets_below_a_gated_path_are_named(api: Shell, directory: Path) -> None:
    """F-315: such a websocket was open, and nothing named it."""
    (directory / "shop" / "live.py").write_text(LIVE)
    gate = '  - {match: "/v1/{path:path}", feature: full_ai}\n  - {match: "WS /v1/open", feature: full_ai}\n'
    (directory / "plans.yaml").write_text(PLANS.replace("routes:\n", f"routes:\n{gate}"))
    (note,) = api.run("routes", "shop.live:app", "--json").json["open_websockets"]
    assert note.startswith("the websocket /v1/live is below the plan route '/v1/{path:path}'")
    assert note.endswith('write before it `{match: "WS /v1/live", feature: full_ai}`')
