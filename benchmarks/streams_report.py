"""What was measured of streams, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from variants import BY_NAME

if TYPE_CHECKING:
    from tables import Table


def requests(result: dict) -> Table:
    """What a stream's reading costs, of what its whole request costs."""
    head = ("variant", "CPU over bare, us", "of that reading alone, us", "the rest, us", "calls")
    timed = result["timed"]
    rows = []
    for name, seen in timed.items():
        if not name.startswith("meterkit"):
            continue
        whole = seen["over_bare_us"]["median"]
        read = seen["parse_us"]["median"] if "parse_us" in seen else 0.0
        cells = (f"{whole:.1f}", f"{read:.1f}", f"{whole - read:.1f}", f"{seen['calls']['median']:.2f}")
        rows.append((BY_NAME[name].title, *cells))
    return "A metered stream beside a plain request", head, rows if "meterkit-stream" in timed else []


def readers(result: dict) -> Table:
    head = ("what is read", "a chunk of one event without usage, us", "chunks of 16 KiB, MB/s")
    found = result.get("streams", {}).get("readers")
    if found is None:
        return "", head, []
    events, rates = found["events_us"] | found["others_us"], found["rates"]
    rows = [
        (
            name,
            f"{events[name]:.2f}" if name in events else "",
            f"{rates[name]:,.0f}" if name in rates else "",
        )
        for name in dict.fromkeys((*events, *rates))
    ]
    return "The readers alone, as the middleware reads", head, rows


def memory(result: dict) -> Table:
    head = ("stream", "bytes after 1 MiB", "at most meanwhile")
    found = result.get("streams", {}).get("readers", {}).get("memory", {})
    rows = [(name, f"{seen['bytes']:,.0f}", f"{seen['most_bytes']:,.0f}") for name, seen in found.items()]
    return "Memory of one open stream's reader", head, rows


def chunks(result: dict) -> Table:
    head = (
        "variant",
        "p50, us",
        "p99, us",
        "added p50, us",
        "added p99, us",
        "last message added p50, us",
        "last message added p99, us",
    )
    found = result.get("streams", {})
    keys = (
        "p50_us",
        "p99_us",
        "added_p50_us",
        "added_p99_us",
        "added_last_p50_us",
        "added_last_p99_us",
    )
    rows = [
        (BY_NAME[name].title, *(f"{seen[key]['median']:.1f}" for key in keys))
        for name, seen in found.get("chunks", {}).items()
    ]
    title = f"Time in `send` per chunk, {found.get('streams', 0)} streams at once in one process"
    return title, head, rows


def races(result: dict) -> Table:
    head = (
        "8 processes x 100 streams, one budget",
        "admitted",
        "refused",
        "recorded",
        "over the budget",
        "actual - reserved",
        "most in use, seen",
        "held after",
        "uncounted",
    )
    rows = []
    for name, seen in result.get("streams", {}).get("races", {}).items():
        admitted = seen["statuses"].get("admitted", 0)
        refused = sum(seen["statuses"].values()) - admitted
        figures = (admitted, refused, seen["recorded"], seen["over"], seen["beyond"])
        after = (seen["most_used"], seen["held_after"], seen["uncounted"])
        rows.append((name, *(f"{figure:,}" for figure in (*figures, *after))))
    return "Overshoot", head, rows
