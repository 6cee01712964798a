"""Measures meterkit and its peers on this machine: python benchmarks/run.py --help."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import importlib.util
import json
import pstats
import sys
from dataclasses import asdict, replace
from pathlib import Path

import audit
import edge_parts
import far
import grants
import inprocess
import outage
import overhttp
import report
import shared_limit
import startup
import streams
import targets
import webhooks
from driver import running
from inprocess import FULL, PROBE_DB, QUICK, Size, Skipped, Worker, database
from machine import Cores, describe, redis_server
from variants import BY_NAME, Variant, chosen
from worker import spread

import delivery

# What is measured on the other loop, too.
ON_BOTH_LOOPS = (
    *("bare", "limits-sliding", "throttled-fixed", "composite"),
    *("meterkit-decide", "meterkit-settle", "meterkit-hot-decide", "meterkit-hot-settle"),
    *("bare-stream", "meterkit-stream"),
)
FIRST_REQUEST_OF = ("bare", "limits-sliding", "composite", "meterkit-decide", "meterkit-settle")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean little")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="variants whose name contains NAME"
    )
    parser.add_argument("--profile", choices=sorted(BY_NAME), metavar="NAME", help="cProfile of one variant")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"so many rounds, not {FULL.rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page of the documentation")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="earlier", help="no run: the results of --json"
    )
    options = parser.parse_args()
    if not chosen(options.only):
        parser.error(f"--only: no variant is named so; there are {', '.join(BY_NAME)}")
    return options


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def probed(variants: tuple[Variant, ...], redis_url: str, cores: Cores, loop: str) -> tuple[dict, dict]:
    """The probes of all variants that run here, and why the others do not."""
    probes, skipped = {}, {}
    for variant in variants:
        try:
            probes[variant.name] = inprocess.probe(variant, redis_url, cores, loop)
        except Skipped as error:
            skipped[variant.name] = str(error)
            note(f"skipped {variant.name}: {error}")
    return probes, skipped


def timed(
    variants: list[Variant], probes: dict, redis_url: str, cores: Cores, *, loop: str, size: Size
) -> dict:
    with contextlib.ExitStack() as stack:
        workers = {
            variant.name: stack.enter_context(Worker(variant, database(redis_url, number), cores, loop))
            for number, variant in enumerate(variants)
        }
        measured = inprocess.rounds(workers, probes, redis_url, size)
    return inprocess.condense(measured, {variant.name: variant.bare for variant in variants})


def measure(options: argparse.Namespace) -> dict:
    size, cores, loop = QUICK if options.quick else FULL, Cores(), "asyncio"
    if options.rounds:
        size = replace(size, rounds=options.rounds, http_rounds=min(options.rounds, size.http_rounds))
    with redis_server(cores) as redis_url:
        machine = describe(redis_url, cores)
        note(f"{machine['server']}, {machine['cores']}")
        probes, skipped = probed(chosen(options.only), redis_url, cores, loop)
        running_here = [BY_NAME[name] for name in probes]
        note("in process")
        figures = timed([v for v in running_here if v.timed], probes, redis_url, cores, loop=loop, size=size)
        note("end to end")
        served = [v for v in running_here if v.over_http]
        http, failed = overhttp.measure(served, redis_url, cores, size)
        uvloop = {}
        if importlib.util.find_spec("uvloop"):
            note("on uvloop")
            both = [v for v in running_here if v.timed and v.name in ON_BOTH_LOOPS]
            uvloop["timed"] = timed(both, probes, redis_url, cores, loop="uvloop", size=size)
            uvloop["http"], _ = overhttp.measure(served, redis_url, cores, size, loop="uvloop")
        else:
            failed["on uvloop"] = "uvloop is not installed (pip install uvloop)"
        note("streams")
        amount = streams.QUICK if options.quick else streams.FULL
        streamed = streams.measure(redis_url, cores, loop, amount) if streams.RESERVE in probes else {}
        note("grants")
        granted = grants.measure(cores)
        note("webhooks")
        posted = webhooks.measure(redis_url, cores, 1_000 if options.quick else webhooks.EVENTS)
        note("delivery")
        delivered = delivery.measure(redis_url, cores, 500 if options.quick else delivery.CUSTOMERS)
        note("the audit log")
        audited = audit.measure(cores)
        note("a store far away")
        away = far.measure(redis_url, cores, loop, size) if not options.only else {}
        note("a store that is away")
        outages = outage.measure(redis_url, cores, loop, size) if not options.only else {}
        note("one limit of three processes")
        shared = {} if options.only else shared_limit.measure(redis_url, is_quick=options.quick)
        note("instructions of a request")
        parts = {} if options.only else edge_parts.measure(redis_url)
        note("imports and first requests")
        first = [v for v in running_here if v.name in FIRST_REQUEST_OF]
        return {
            "machine": machine,
            "size": asdict(size),
            "loop": loop,
            "skipped": skipped | failed,
            "probes": probes,
            "timed": figures,
            "http": http,
            "uvloop": uvloop,
            "far": away,
            "streams": streamed,
            "grants": granted,
            "webhooks": posted,
            "delivery": delivered,
            "audit": audited,
            "outage": outages,
            "shared_limit": shared,
            "edge_parts": parts,
            "imports": startup.import_times(cores, size),
            "first": startup.first_requests(first, redis_url, cores, loop, size),
        }


def profile(name: str) -> None:
    """Prints where one variant spends its time; the profiler itself weighs on short functions."""

    like = BY_NAME[name].target

    async def work(redis_url: str) -> cProfile.Profile:
        profiler = cProfile.Profile()
        async with running(BY_NAME[name].build(redis_url)) as client:
            await client.burst(spread(1000, 1000, 0, like), 50)
            profiler.enable()
            await client.burst(spread(5000, 1000, 1, like), 50)
            profiler.disable()
        return profiler

    with redis_server(Cores()) as redis_url:
        profiler = asyncio.run(work(database(redis_url, PROBE_DB)))
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


def main() -> None:
    options = arguments()
    if options.profile:
        profile(options.profile)
        return
    result = json.loads(options.earlier.read_text()) if options.earlier else measure(options)
    result["targets"] = targets.judged(result, [n for n, v in BY_NAME.items() if v.kind == "peer"])
    print(report.as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(report.as_markdown(result))


if __name__ == "__main__":
    main()
