"""Measures meterkit and its peers on this machine: python benchmarks/run.py --help."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import audit
import far
import grants
import growth
import inprocess
import nodes
import operator_pages
import outage
import overhttp
import publication
import quiet
import redis
import report
import shared_limit
import simulate
import startup
import streams
import targets
import webhooks
from inprocess import FULL, QUICK, Size, Skipped, Worker, database
from machine import Cores, describe, redis_server
from variants import BY_NAME, Variant, chosen

import delivery

if TYPE_CHECKING:
    from collections.abc import Callable

    from quiet import Gauge

# What is measured on the other loop, too.
ON_BOTH_LOOPS = (
    *("bare", "limits-sliding", "throttled-fixed", "composite"),
    *("limits-memory", "throttled-memory", "rust-memory", "composite-memory"),
    *("meterkit-decide", "meterkit-settle", "meterkit-hot-decide", "meterkit-hot-settle"),
    *("bare-stream", "meterkit-stream"),
)
IN_MIX = (
    *("bare", "limits-fixed", "throttled-fixed", "composite", "limits-memory", "composite-memory"),
    *("meterkit-decide", "meterkit-settle", "meterkit-hot-decide", "meterkit-hot-settle"),
)
FIRST_REQUEST_OF = ("bare", "limits-sliding", "composite", "meterkit-decide", "meterkit-settle")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean little")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="variants whose name contains NAME"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"so many rounds, not {FULL.rounds}")
    parser.add_argument(
        "--parts",
        type=Path,
        metavar="FILE",
        help="keep the results of each part in FILE, and go on from those that it has: a run in sittings",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--markdown", type=Path, metavar="DOCS", help="write all pages with figures")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="earlier", help="no run: the results of --json"
    )
    options = parser.parse_args()
    if not chosen(options.only):
        parser.error(f"--only: no variant is named so; there are {', '.join(BY_NAME)}")
    if options.markdown and not options.earlier and shutil.which("wrk") is None:
        parser.error("--markdown: the pages need wrk; apt-get install wrk")
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
    run: Run,
    variants: list[Variant],
    part: str,
    loop: str = "asyncio",
    send: Callable[..., dict] = Worker.burst,
) -> dict:
    redis.Redis.from_url(run.redis_url).flushall()
    with contextlib.ExitStack() as stack:
        workers = {
            variant.name: stack.enter_context(
                Worker(variant, database(run.redis_url, number), run.cores, loop)
            )
            for number, variant in enumerate(variants)
        }
        measured = inprocess.rounds(workers, run.probes, run.redis_url, run.size, run.gauge, part, send)
    return inprocess.condense(measured, {variant.name: variant.bare for variant in variants})


@dataclass(slots=True)
class Run:
    """What all parts of a run share."""

    size: Size
    cores: Cores
    redis_url: str
    gauge: Gauge
    probes: dict
    skipped: dict
    is_quick: bool
    kept: KeptParts

    def compare_variants(self) -> dict:
        here = [BY_NAME[name] for name in self.probes]
        both = [v for v in here if v.timed and v.name in ON_BOTH_LOOPS]
        mixed = [v for v in here if v.name in IN_MIX]
        first = [v for v in here if v.name in FIRST_REQUEST_OF]
        keep = self.kept.measure_once
        found: dict = {
            "timed": keep("timed", lambda: timed(self, [v for v in here if v.timed], "in process")),
            "http": keep("http", lambda: self._over_http(here, "asyncio")),
            "uvloop": {},
        }
        if importlib.util.find_spec("uvloop"):
            found["uvloop"] = {
                "timed": keep("uvloop timed", lambda: timed(self, both, "in process on uvloop", "uvloop")),
                "http": keep("uvloop http", lambda: self._over_http(here, "uvloop")),
            }
        else:
            self.skipped["on uvloop"] = "uvloop is not installed (pip install uvloop)"
        found["mix"] = keep("mix", lambda: timed(self, mixed, "mix", send=Worker.send_mix))
        found["first"] = self._measure_part(
            "first", lambda: startup.first_requests(first, self.redis_url, self.cores, "asyncio", self.size)
        )
        return found

    def _over_http(self, here: list[Variant], loop: str) -> dict:
        served = [v for v in here if v.over_http]
        found, failed = overhttp.measure(served, self.redis_url, self.cores, self.size, self.gauge, loop=loop)
        self.skipped |= failed
        return found

    def _measure_part(self, name: str, measure: Callable[[], dict]) -> dict:
        return self.kept.measure_once(name, lambda: self.gauge.measure_part(name, measure))

    def measure_others(self) -> dict:
        url, cores, is_quick = self.redis_url, self.cores, self.is_quick
        parts: dict[str, Callable[[], dict]] = {
            "streams": lambda: streams.measure(
                url, cores, "asyncio", streams.QUICK if is_quick else streams.FULL
            ),
            "grants": lambda: grants.measure(cores),
            "webhooks": lambda: webhooks.measure(url, cores, 1_000 if is_quick else webhooks.EVENTS),
            "delivery": lambda: delivery.measure(url, cores, 500 if is_quick else delivery.CUSTOMERS),
            "audit": lambda: audit.measure(cores),
            "outage": lambda: outage.measure(url, cores, "asyncio", self.size),
            "shared_limit": lambda: shared_limit.measure(url, is_quick=is_quick),
            "imports": lambda: startup.import_times(cores, self.size),
        }
        found = {name: self._measure_part(name, measure) for name, measure in parts.items()}
        return found | {
            "far": self.kept.measure_once(
                "far", lambda: far.measure(url, cores, "asyncio", self.size, self.gauge)
            )
        }

    def measure_pages(self) -> dict:
        """What stands on other pages than that of the benchmarks."""
        rows = simulate.QUICK_ROWS if self.is_quick else simulate.ROWS
        customers = operator_pages.QUICK_CUSTOMERS if self.is_quick else operator_pages.CUSTOMERS
        found = {
            "nodes": self._measure_part("nodes", lambda: nodes.measure(self.cores, "asyncio", self.size)),
            "simulate": self._measure_part("simulate", lambda: simulate.measure(rows)),
            "operator_pages": self._measure_part("operator_pages", lambda: operator_pages.measure(customers)),
        }
        grown: dict[str, dict] = {}
        for step in growth.steps(is_quick=self.is_quick):
            grown.setdefault(str(step[0]), {})[str(step[1])] = self._measure_part(
                "growth, {} nodes, {:,} customers".format(*step),
                lambda step=step: growth.run(*step, self.cores),
            )
        return found | {"growth": grown}


@dataclass(slots=True)
class KeptParts:
    """The parts of a run that are measured, in a file too where one is named."""

    path: Path | None
    gauge: Gauge
    machine: dict
    found: dict[str, dict] = field(default_factory=dict)

    def load(self) -> None:
        """Go on from the file: only on the same machine with the same packages."""
        if self.path is None or not self.path.exists():
            return
        kept = json.loads(self.path.read_text())
        changed = [
            key
            for key in self.machine
            if key not in {"when", "command"} and self.machine[key] != kept["machine"][key]
        ]
        if changed:
            raise SystemExit(f"--parts: {self.path} is of another machine ({', '.join(changed)}); remove it")
        self.machine = kept["machine"]
        self.found = kept["found"]
        self.gauge.readings = {
            **kept["readings"],
            "start": [*kept["readings"]["start"], *self.gauge.readings["start"]],
        }
        self.gauge.took_s = kept["took_s"]

    def measure_once(self, name: str, measure: Callable[[], dict]) -> dict:
        """What a part came to; measured if the file does not have it."""
        if name not in self.found:
            self.found[name] = measure()
            self._save()
        return self.found[name]

    def _save(self) -> None:
        if self.path is None:
            return
        kept = {
            "machine": self.machine,
            "found": self.found,
            "readings": self.gauge.readings,
            "took_s": self.gauge.took_s,
        }
        self.path.write_text(json.dumps(kept, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict:
    size, cores = QUICK if options.quick else FULL, Cores()
    if options.rounds:
        size = replace(size, rounds=options.rounds, http_rounds=min(options.rounds, size.http_rounds))
    with redis_server(cores) as redis_url, inprocess.open_gauge(redis_url, cores, size) as gauge:
        kept = KeptParts(options.parts, gauge, describe(redis_url, cores))
        kept.load()
        machine = kept.machine
        note(f"{machine['server']}, {machine['cores']}; {'10 minutes' if options.quick else '1 to 2 hours'}")
        probes, skipped = probed(chosen(options.only), redis_url, cores, "asyncio")
        run = Run(size, cores, redis_url, gauge, probes, skipped, options.quick, kept)
        found = (
            run.compare_variants()
            if options.only
            else run.compare_variants() | run.measure_others() | run.measure_pages()
        )
        for option in ("quick", "only"):
            if getattr(options, option):
                run.skipped[f"--{option}"] = "the figures mean little, or some are missing"
    return found | {
        "machine": machine,
        "size": asdict(size),
        "skipped": run.skipped,
        "probes": probes,
        "quiet": quiet.judge_readings(gauge.readings),
        "took_s": gauge.took_s,
    }


def main() -> None:
    options = arguments()
    result = json.loads(options.earlier.read_text()) if options.earlier else measure(options)
    result["targets"] = targets.judged(result)
    print(report.as_text(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        if reasons := quiet.list_refusals(result):
            raise SystemExit("\n".join(["These figures are not published:", *reasons]))
        publication.write_pages(result, options.markdown)


if __name__ == "__main__":
    main()
