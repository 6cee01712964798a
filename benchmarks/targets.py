"""What meterkit sets out to reach, and whether a run reached it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from variants import BY_NAME

DECIDE, SETTLE = "meterkit-decide", "meterkit-settle"
HOT_DECIDE, HOT_SETTLE = "meterkit-hot-decide", "meterkit-hot-settle"
SLIDING, COMPOSITE, THREE = "limits-sliding", "composite", "meterkit-three"
STREAM, SPEND, SUBJECTS = "meterkit-stream", "meterkit-spend", "meterkit-subjects"
_IMPORT_MS = {
    "import meterkit": 40,
    "from meterkit import MeterKit, MeterMiddleware, identify, record": 180,
    "from meterkit import MeterKit, MeterMiddleware, identify, record; MeterKit('plans/decide.yaml')": 300,
}


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    aim: float
    unit: str
    better: Literal["more", "less"]
    reached: float
    against: str = ""

    @property
    def met(self) -> bool:
        return self.reached >= self.aim if self.better == "more" else self.reached <= self.aim


def _median(timed: dict, name: str, key: str) -> float:
    return timed[name][key]["median"]


def _in_process(timed: dict, probes: dict, peers: list[str]) -> list[Target]:
    found = []
    cheapest = min(peers, key=lambda name: _median(timed, name, "over_bare_us"), default=None)
    fastest = max(peers, key=lambda name: _median(timed, name, "per_second"), default=None)
    for name, label, cpu_aim, rival, speed_aim in (
        (DECIDE, "(a)", 6.5, cheapest, 2.5),
        (SETTLE, "(b)", 13, COMPOSITE, 2),
    ):
        if name not in timed:
            continue
        found += _cheaper(timed, probes, name, label, cpu_aim, rival)
        if fastest:
            ratio = _median(timed, name, "per_second") / _median(timed, fastest, "per_second")
            found.append(
                Target(f"{label} throughput, times the best peer's", speed_aim, "x", "more", ratio, fastest)
            )
    for name, label in ((SPEND, "under a budget"), (SUBJECTS, "under budgets of customer, team and user")):
        if name in timed and SETTLE in timed:
            for key, what in (("over_bare_us", "CPU over the bare app"), ("server_us", "server time")):
                ratio = _median(timed, name, key) / _median(timed, SETTLE, key)
                found.append(Target(f"(b) {label}: {what}", 1.5, "x", "less", ratio, SETTLE))
    for name, label, aim in ((DECIDE, "decide", 2.5), (SETTLE, "decide and settle", 3.5)):
        if name in timed and SLIDING in timed:
            ratio = _median(timed, name, "server_us") / _median(timed, SLIDING, "server_us")
            found.append(
                Target(f"server time of {label}, times a sliding window", aim, "x", "less", ratio, SLIDING)
            )
    return found


def _cheaper(timed: dict, probes: dict, name: str, label: str, aim: float, rival: str | None) -> list[Target]:
    """How many times the CPU of a rival over the bare app is a variant's, and its instructions."""
    if rival not in timed:
        return []
    ratio = _median(timed, rival, "over_bare_us") / _median(timed, name, "over_bare_us")
    counts = [
        probes[one]["instructions"] - probes[BY_NAME[one].bare]["instructions"] for one in (rival, name)
    ]
    return [
        Target(f"{label} CPU over the bare app, times cheaper", aim, "x", "more", ratio, rival),
        Target(f"{label} instructions, times fewer", aim, "x", "more", counts[0] / counts[1], rival),
    ]


def _hot(timed: dict, on: str = "") -> list[Target]:
    """Requests of one customer with allotments, beside limiters in memory; ``on`` names the event loop.

    Both are decided within the process; allotments also hold across processes, and their usage is billed.
    """
    found = []
    for name, label in ((HOT_DECIDE, f"hot (a){on}"), (HOT_SETTLE, f"hot (b){on}")):
        if name not in timed:
            continue
        over = _median(timed, name, "over_bare_us")
        found.append(Target(f"{label} CPU over the bare app", 3, "us", "less", over, "bare"))
        rivals = [other for other in timed if BY_NAME[other].compared_with == name]
        if cheapest := min(rivals, key=lambda other: _median(timed, other, "over_bare_us"), default=None):
            ratio = over / max(0.1, _median(timed, cheapest, "over_bare_us"))
            what = f"{label} CPU over the bare app, times that of the cheapest in memory"
            found.append(Target(what, 1, "x", "less", ratio, cheapest))
        server = _median(timed, name, "server_cpu_us")
        found.append(Target(f"{label} CPU of the whole server", 1, "us", "less", server))
    return found


def _hot_over_http(http: dict, far: dict) -> list[Target]:
    """Under uvicorn on uvloop; and with the most distant store."""
    served = [
        Target(
            f"hot {label} requests/s under uvicorn on uvloop, of the bare app's",
            80,
            "%",
            "more",
            100 * _median(http, name, "of_bare"),
            "bare",
        )
        for name, label in ((HOT_DECIDE, "(a)"), (HOT_SETTLE, "(b)"))
        if name in http
    ]
    away_ms, away = max(far.items(), key=lambda item: int(item[0]), default=("0", {}))
    return served + [
        Target(
            f"hot {label} with the store {away_ms} ms away: added p50",
            0.05,
            "ms",
            "less",
            (away[name]["p50_us"] - away["bare"]["p50_us"]) / 1e3,
            "bare",
        )
        for name, label in ((HOT_DECIDE, "(a)"), (HOT_SETTLE, "(b)"))
        if name in away
    ]


def _shared_limit(found: dict) -> list[Target]:
    """At most 1 % of the limit is refused while units are left, and nothing is admitted beyond it."""
    return [
        Target(f"one limit, three processes: {what}", aim, unit, "less", seen[key], load)
        for load, seen in found.items()
        for key, what, aim, unit in (
            ("left", "units left at the first refusal", 100, "units"),
            ("early", "refused before the last unit was used", 100, "requests"),
            ("over", "admitted beyond the limit", 0, "units"),
        )
    ]


def _over_http(http: dict) -> list[Target]:
    return [
        Target(f"{label} requests/s under uvicorn, of the bare app's", 90, "%", "more", share * 100, "bare")
        for name, label in ((DECIDE, "(a)"), (SETTLE, "(b)"))
        if name in http and (share := _median(http, name, "of_bare"))
    ]


def _requests_of_streams(timed: dict) -> list[Target]:
    if STREAM not in timed:
        return []
    calls, over = _median(timed, STREAM, "calls"), _median(timed, STREAM, "over_bare_us")
    found = [
        Target("a reserved and captured stream: script calls", 2, "calls", "less", calls),
        Target("a reserved and captured stream: CPU over the bare one", 120, "us", "less", over),
    ]
    rest = over - _median(timed, STREAM, "parse_us")
    for name in (DECIDE, SETTLE):
        if name in timed:
            ratio = rest / _median(timed, name, "over_bare_us")
            what = "its CPU over the bare stream less reading, times a plain request's"
            found.append(Target(what, 2, "x", "less", ratio, name))
    return found


def _streams(found: dict) -> list[Target]:
    if not found:
        return []
    events, rates = found["readers"]["events_us"], found["readers"]["rates"]
    added = found["chunks"][STREAM]["added_p99_us"]["median"]
    return [
        *(
            Target("a chunk of one event without usage", 3, "us", "less", events[name], name)
            for name in ("OpenAI", "OpenAI, `usage: null`", "OpenAI, padded")
        ),
        *(
            Target("chunks of 16 KiB", 300, "MB/s", "more", rates[name], name)
            for name in ("OpenAI", "Anthropic")
        ),
        Target("added to a chunk at 200 streams, p99", 50, "us", "less", added, "bare-stream"),
        *(
            Target(
                "units over the budget, less those over what was reserved",
                0,
                "units",
                "less",
                max(0, race["over"] - race["beyond"]),
                name,
            )
            for name, race in found["races"].items()
        ),
    ]


def _webhooks(found: dict) -> list[Target]:
    return [
        Target(f"webhooks posted {how}: {what}", aim, unit, better, seen[key])
        for how, seen in found.items()
        for key, what, aim, unit, better in (
            ("per_second", "taken", 990, "events/s", "more"),
            ("p99_ms", "p99", 10, "ms", "less"),
        )
        if how.endswith("second") or key == "per_second"
    ]


def _delivery(found: dict) -> list[Target]:
    aims = {"v1": 300, "v2-stream": 5_000}
    targets = [
        Target(f"usage delivered by {transport}", aims[transport], "events/s", "more", seen["per_second"])
        for transport, seen in found.items()
    ]
    return targets + [
        Target(f"a flusher by {transport}: {what}", aim, unit, "less", seen[key])
        for transport, seen in found.items()
        for key, what, aim, unit in (
            ("core_percent_at_100", "100 events/s", 25, "% of a core"),
            ("idle_pass_ms", "an idle pass", 0.5, "ms of CPU"),
            ("bytes_kept", "kept of each event", 100, "bytes"),
        )
    ]


def _audit(found: dict) -> list[Target]:
    return [
        Target(f"the audit log, {whose} time of a settlement", 2, "us", "less", seen["on"] - seen["off"])
        for whose, seen in found.items()
    ]


def _outage(found: dict) -> list[Target]:
    return [
        Target(
            f"{BY_NAME[name].title.split(':')[0]}, its store down: {what}",
            aim,
            unit,
            "less",
            seen["without"][key] - seen["with"][key],
        )
        for name, seen in found.items()
        for key, what, aim, unit in (
            ("over_bare_us", "CPU over that with its store", 3, "us"),
            ("p99_us", "p99 over that with its store", 0, "us"),
        )
    ]


def judged(result: dict) -> list[dict]:
    """Every target that the run can speak of, with what was reached."""
    timed, uvloop = result["timed"], {"timed": {}, "http": {}} | result["uvloop"]
    found = _in_process(timed, result["probes"], [name for name in timed if BY_NAME[name].kind == "peer"])
    found += _hot(timed) + _hot(uvloop["timed"], " on uvloop")
    found += _over_http(result["http"])
    found += _hot_over_http(uvloop["http"], result.get("far", {}))
    found += _shared_limit(result.get("shared_limit", {}))
    found += _requests_of_streams(result["timed"]) + _streams(result.get("streams", {}))
    found += _webhooks(result.get("webhooks", {}))
    found += _delivery(result.get("delivery", {})) + _audit(result.get("audit", {}))
    found += _outage(result.get("outage", {}))
    if THREE in result["probes"]:
        size = result["probes"][THREE]
        reached = size["bytes_of_one_customer"] or size["bytes_all_per_customer"]
        found.append(Target("memory of a customer with 3 meters and 3 rates", 1024, "bytes", "less", reached))
    for statement, seen in result.get("imports", {}).items():
        if "meterkit" in statement and "median_ms" in seen:
            if statement in _IMPORT_MS:
                found.append(Target(f"`{statement}`", _IMPORT_MS[statement], "ms", "less", seen["median_ms"]))
            loaded = len(seen["unwanted"])
            found.append(Target(f"`{statement}`: optional packages loaded", 0, "packages", "less", loaded))
    for name, label in ((DECIDE, "(a)"), (SETTLE, "(b)")):
        if name in result["first"]:
            reached = result["first"][name]["first_ms"]
            found.append(Target(f"{label} first request after the start", 5, "ms", "less", reached))
    return [asdict(target) | {"met": target.met} for target in found]
