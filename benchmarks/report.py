"""The results as tables: aligned for a terminal, or as a page of the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import audit
import far
import grants
import outage
import quiet
import shared_limit
import streams_report
import webhooks
from inprocess import MIX_PER_SECOND
from tables import aligned, format_markdown
from variants import BY_NAME, LABELS

import delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tables import Table


def _span(figure: dict, digits: int = 1) -> str:
    return f"{figure['median']:,.{digits}f} ({figure['low']:,.{digits}f}-{figure['high']:,.{digits}f})"


def _compare(
    rows: dict[str, dict], name: str, figure: Callable[[dict], float], *, more_is_better: bool = False
) -> str:
    """How many times as good meterkit's similar row is; it says so if meterkit's is worse."""
    ours = BY_NAME[name].compared_with
    if ours not in rows:
        return ""
    pair = figure(rows[name]), figure(rows[ours])
    better, worse = reversed(pair) if more_is_better else pair
    ratio = max(0.0, better / worse) if worse else 0.0
    if ratio >= 1:
        return f"{ratio:.1f} x {LABELS[ours]}"
    return f"{ratio:.2f} x {LABELS[ours]}, meterkit loses"


def _count_over_bare(result: dict) -> dict[str, dict]:
    """The bytecode instructions of each variant over those of its bare app."""
    probes = result.get("probes", {})
    return {
        name: {"over_bare": seen["instructions"] - probes[BY_NAME[name].bare]["instructions"]}
        for name, seen in probes.items()
        if BY_NAME[name].kind != "bare"
    }


def _on_uvloop(part: Callable[[dict], Table]) -> Callable[[dict], Table]:
    """The same table of what ran on uvloop."""

    def table(result: dict) -> Table:
        title, head, rows = part({"timed": {}, "http": {}} | result["uvloop"])
        return f"{title}, on uvloop", head, rows

    return table


def _timed(result: dict) -> Table:
    head = (
        *("variant", "CPU over bare, us", "beside meterkit"),
        *("instructions over bare", "beside meterkit", "requests/s", "p50, us", "p99, us"),
    )
    counts = _count_over_bare(result)
    rows = [
        (
            BY_NAME[name].title,
            _over_bare(name, seen),
            _compare(result["timed"], name, _median_of("over_bare_us")),
            f"{counts[name]['over_bare']:,.0f}" if name in counts else "",
            _compare(counts, name, lambda count: count["over_bare"]) if name in counts else "",
            _span(seen["per_second"], 0),
            f"{seen['p50_us']['median']:,.0f}",
            f"{seen['p99_us']['median']:,.0f}",
        )
        for name, seen in result["timed"].items()
    ]
    return "In process, per request", head, rows


def _over_bare(name: str, seen: dict) -> str:
    if BY_NAME[name].kind == "bare":
        return f"(own: {_span(seen['cpu_us'])})"
    return _span(seen["over_bare_us"])


def _median_of(key: str) -> Callable[[dict], float]:
    return lambda seen: seen[key]["median"]


def _mix(result: dict) -> Table:
    head = (
        *("variant", "CPU over bare, us", "beside meterkit"),
        *("server CPU, us", "beside meterkit", "p50, us", "p99, us"),
    )
    found = result.get("mix", {})
    rows = [
        (
            BY_NAME[name].title.replace(", one customer", ""),
            _over_bare(name, seen),
            _compare(found, name, _median_of("over_bare_us")),
            f"{seen['server_cpu_us']['median']:.1f}",
            _compare(found, name, _median_of("server_cpu_us")),
            f"{seen['p50_us']['median']:,.0f}",
            f"{seen['p99_us']['median']:,.0f}",
        )
        for name, seen in found.items()
    ]
    return f"A mix: Zipf's law, {MIX_PER_SECOND:,} requests a second, 1,000 customers", head, rows


def _server(result: dict) -> Table:
    head = ("variant", "commands", "calls", "time in commands, us", "whole server CPU, us", "beside meterkit")
    rows = [
        (
            BY_NAME[name].title,
            " ".join(result["probes"][name]["commands"]),
            f"{seen['calls']['median']:.2f}",
            _span(seen["server_us"], 2),
            _span(seen["server_cpu_us"]),
            _compare(result["timed"], name, _median_of("server_cpu_us")),
        )
        for name, seen in result["timed"].items()
        if BY_NAME[name].kind not in ("bare", "memory")
    ]
    return "The store's side, per request", head, rows


def _memory(result: dict) -> Table:
    head = (
        "variant",
        "keys, 100 customers",
        "keys, 100 customers x 10 paths",
        "bytes of one customer",
        "all bytes / customers",
        "beside meterkit",
    )
    rows = [
        (
            BY_NAME[name].title,
            f"{seen['keys_100_customers']:,}",
            f"{seen['keys_100_customers_10_paths']:,}",
            f"{seen['bytes_of_one_customer']:,}",
            f"{seen['bytes_all_per_customer']:,.0f}",
            _compare(result["probes"], name, lambda seen: seen["bytes_all_per_customer"]),
        )
        for name, seen in result["probes"].items()
        if BY_NAME[name].kind not in ("bare", "memory")
    ]
    return "Keys and memory, after 10 requests per customer", head, rows


def _http(result: dict) -> Table:
    head = (
        *("variant", "requests/s", "beside meterkit", "of bare, %"),
        *("p50, us", "p99, us", "CPU of the process, us", "busy, %"),
    )
    rows = [
        (
            BY_NAME[name].title,
            _span(seen["per_second"], 0),
            _compare(result["http"], name, _median_of("per_second"), more_is_better=True),
            f"{seen['of_bare']['median'] * 100:.1f}",
            f"{seen['p50_us']['median']:,.0f}",
            f"{seen['p99_us']['median']:,.0f}",
            _span(seen["cpu_us"]),
            f"{seen['busy']['median'] * 100:.0f}",
        )
        for name, seen in result["http"].items()
    ]
    return "End to end: uvicorn, one process, wrk", head, rows


def _imports(result: dict) -> Table:
    head = ("statement", "median, ms of CPU", "lowest, ms of CPU", "modules", "optional packages loaded")
    rows = []
    for statement, seen in result.get("imports", {}).items():
        if "error" in seen:
            rows.append((f"`{statement}`", "failed", "", "", seen["error"]))
        else:
            unwanted = " ".join(seen["unwanted"]) or "none"
            rows.append(
                (
                    f"`{statement}`",
                    f"{seen['median_ms']:.1f}",
                    f"{seen['low_ms']:.1f}",
                    str(seen["modules"]),
                    unwanted,
                )
            )
    return "Imports, fresh interpreters", head, rows


def _first(result: dict) -> Table:
    head = ("variant", "start, ms", "first request, ms", "second request, ms")
    rows = [
        (
            BY_NAME[name].title,
            f"{seen['start_ms']:.2f}",
            f"{seen['first_ms']:.2f}",
            f"{seen['second_ms']:.2f}",
        )
        for name, seen in result["first"].items()
        if name in BY_NAME
    ]
    return "The first request of a process", head, rows


def _targets(result: dict) -> Table:
    head = ("target", "aim", "reached", "against", "met")
    rows = [
        (
            target["what"],
            f"{'>=' if target['better'] == 'more' else '<='} {target['aim']:g} {target['unit']}",
            f"{target['reached']:,.2f} {target['unit']}",
            target["against"],
            "yes" if target["met"] else "NO",
        )
        for target in result["targets"]
    ]
    return "Against meterkit's targets", head, rows


PARTS: tuple[Callable[[dict], Table], ...] = (
    _timed,
    _mix,
    _server,
    _memory,
    _http,
    _on_uvloop(_timed),
    _on_uvloop(_http),
    far.table,
    outage.table,
    shared_limit.table,
    _imports,
    _first,
    streams_report.requests,
    streams_report.readers,
    streams_report.memory,
    streams_report.chunks,
    streams_report.races,
    grants.table,
    webhooks.table,
    delivery.table,
    audit.table,
    _targets,
)


def _tables(result: dict) -> Iterable[Table]:
    return (table for part in PARTS if (table := part(result))[2])


def format_machine(result: dict) -> list[str]:
    """The date, the machine and the verdict of a run, the same on all pages."""
    machine = result["machine"]
    return [
        f"{machine['when']}, {machine['cpu']}, {machine['cpus']} CPUs ({machine['cores']})",
        f"{machine['system']}, {machine['python']}, {machine['server']}",
        quiet.format_verdict(result),
    ]


def _run_lines(result: dict) -> list[str]:
    machine, size = result["machine"], result["size"]
    amount = f"{size['rounds']} rounds of {size['requests']:,} requests, {size['concurrency']} at a time"
    return [
        *format_machine(result),
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{amount}, {size['customers']:,} customers; median (lowest-highest round)",
        f"`{machine['command']}`, {sum(result['took_s'].values()) / 60:.0f} minutes",
    ]


def as_text(result: dict) -> str:
    lines = _run_lines(result)
    for title, head, rows in _tables(result):
        lines += ["", f"== {title}", *aligned(head, rows)]
    if result["skipped"]:
        lines += ["", "== Skipped", *(f"{name}: {why}" for name, why in result["skipped"].items())]
    return "\n".join(lines)


PREFACE = """\
# Benchmarks

`make bench` measures all figures of this page in one run and writes it. Run it on your own machine.

![CPU that a request costs beyond the bare app, in microseconds](assets/drawings/cost.svg)

## How it measures

- Each limiter stands before the same Starlette app with one route, in a process of its own. It is called
  through the ASGI interface, without an HTTP server. Rounds of all variants are interleaved. No request is
  denied.
- The bare app is measured on both cores before and after each round, and before and after each other part.
  If a request of it takes more than 15 % longer than at its lowest, the round or part is repeated. If it
  stays disturbed, the run is not published. Each of these readings is the median of five bursts.
- CPU is that of the whole process, with the work after the response, less that of the bare app in the same
  round. The garbage collector stays on.
- *Beside meterkit* is how many times better the similar row of meterkit is. Below 1 meterkit loses. Limiters
  with Redis stand beside (a), the composite beside (b), and limiters in memory beside hot (a) or (b): the
  rows of one customer with allotments.
- *Instructions* are bytecode instructions of the app's process, counted with `sys.settrace` in a burst of
  its own. A busy machine hardly changes them. Work in C is not counted.
- A limiter without ASGI middleware gets a minimal one, which sends no headers. meterkit sends `RateLimit`
  and `RateLimit-Policy`.
- Each peer gets its fastest client: valkey-py with libvalkey for `limits`, redis-py with hiredis for the
  others.
- The single-limit peers check one rate, meterkit (a) checks two.
- The *composite* does the job of meterkit (b) with separate parts in one pipeline, so in one round trip: the
  script of limits' sliding window, and a counter that is both quota and usage.
- *In memory of one process*: other processes do not know these counts, and a restart loses them. Allotments
  hold across processes, and their usage reaches Redis.
- Rows of *one customer* and the bare app send ten times as many requests: in the first tenth of a second
  most hot requests are decided one by one, until allotments are large. Each client lets others run after a
  request.
- The *mix* is an open loop: each request starts at its own random time, whether or not those before it have
  ended. The second customer sends half as many as the first, the third a third, and so on.
- *Streams* are answers in 20 chunks, as OpenAI's Chat Completions sends them. Between two chunks the app
  lets others run. *Reading alone* feeds the same chunks to a reader.
- The time in `send` is the app's wait for each chunk, in process. In the races each stream reserves 200
  tokens and uses a random number.
- For *a store some milliseconds away*, a proxy delays each response of the store.
- For *one limit*, three processes with `allotment: 250ms` send requests of one customer at a steady rate,
  within one minute, until all are refused. One clock orders the responses of all processes.
- *Grants* is the server's time for a customer with prepaid credits, by the number of grants. Each figure is
  the lowest mean of ten batches of 200 calls.
- The *webhook endpoint* queues 10,000 signed events of 5 KB: first one each millisecond, then 32 at a time.
  The client shares a core with the store.
"""


def as_markdown(result: dict) -> str:
    lines = [PREFACE, "## The run", "", *(f"- {line}" for line in _run_lines(result))]
    for title, head, rows in _tables(result):
        lines += ["", f"## {title}", "", *format_markdown(head, rows)]
    if result["skipped"]:
        lines += ["", "## Skipped", "", *(f"- {name}: {why}" for name, why in result["skipped"].items())]
    return "\n".join(lines) + "\n"
