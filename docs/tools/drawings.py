"""Writes the drawings of the documentation: python docs/tools/drawings.py [DIRECTORY]."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from growth_drawing import growth
from people_drawings import messages, movements, simulation, storage
from svg import Drawing

DOCS = Path(__file__).parents[1]
PLACE = DOCS / "assets" / "drawings"


def request() -> Drawing:
    """A request's way."""
    drawing = Drawing(
        "request",
        920,
        572,
        title="The path of a request",
        told=(
            "The middleware finds the route of the plans file and the customer, asks Redis once by the script decide, and"
            " returns 429, 402 or 403 if that refuses. Otherwise the app runs, its response passes with RateLimit fields, and"
            " after the last byte the script settle gives back what was held and records what is billed."
        ),
    )
    columns = {"client": 90, "meterkit": 340, "app": 590, "redis": 820}
    heads = {
        "client": "Client",
        "meterkit": "MeterMiddleware",
        "app": "Your endpoint",
        "redis": "Redis or Valkey",
    }
    for name, x in columns.items():
        drawing.box(x - 80, 12, 160, 40, heads[name], kind="strong" if name == "meterkit" else "tint")
        drawing.line((x, 52), (x, 560), colour="edge", dashed=True, head=False, wide=1.2)
    client, kit, app, redis = columns.values()
    drawing.line((client, 86), (kit - 4, 86))
    drawing.text((client + kit) / 2, 79, "request", size=12.5, anchor="middle", colour="quiet")
    drawing.box(
        kit - 118, 98, 236, 48, "which route, which customer", small="plans file, identify: no round trip"
    )
    drawing.line((kit, 172), (redis - 4, 172), colour="strong", wide=2)
    drawing.text((app + redis) / 2, 164, "decide", size=13, anchor="middle", bold=True, mono=True)
    drawing.text(
        kit + 12, 164, "all rates, quotas, credits, concurrency: one script", size=12, colour="quiet"
    )
    drawing.line((redis, 204), (kit + 4, 204), colour="strong", wide=2)
    drawing.text(
        (app + redis) / 2,
        222,
        "counted and held, or nothing at all",
        size=12,
        anchor="middle",
        colour="quiet",
    )
    drawing.line((kit, 252), (client + 4, 252), colour="stop-edge", wide=2)
    drawing.text(
        (client + kit) / 2,
        244,
        "refused: 429, 402, 403",
        size=12.5,
        anchor="middle",
        colour="stop-edge",
        bold=True,
    )
    drawing.text(
        (client + kit) / 2, 269, "problem document, Retry-After", size=12, anchor="middle", colour="quiet"
    )
    drawing.line((kit, 304), (app - 4, 304))
    drawing.text((kit + app) / 2, 297, "allowed", size=12.5, anchor="middle", colour="quiet")
    drawing.box(app - 80, 316, 160, 62, "runs", small="may record() more\nwhat it costs")
    drawing.line((app, 404), (client + 4, 404))
    drawing.text(
        (client + kit) / 2, 397, "response, chunk by chunk", size=12.5, anchor="middle", colour="quiet"
    )
    drawing.text(
        (client + kit) / 2, 421, "+ RateLimit, RateLimit-Policy", size=12, anchor="middle", colour="quiet"
    )
    drawing.box(
        kit - 118,
        430,
        236,
        62,
        "what came of it?",
        small="after the last byte: 2xx is billed,\n4xx and 5xx are not",
    )
    drawing.line((kit, 526), (redis - 4, 526), colour="strong", wide=2)
    drawing.text((app + redis) / 2, 518, "settle", size=13, anchor="middle", bold=True, mono=True)
    drawing.text(kit + 12, 518, "hold given back, usage recorded, numbered", size=12, colour="quiet")
    drawing.text(kit + 12, 546, "the client does not wait for it", size=12, colour="quiet")
    return drawing


def bill() -> Drawing:
    """A unit's way to the bill."""
    drawing = Drawing(
        "bill",
        920,
        430,
        title="The path of a unit to the invoice",
        told=(
            "A unit that is recorded is paid once: by what the plan includes, then by grants, then by credits, or it is"
            " overage. What is reportable is pending, waits unlinked where the customer has no Stripe customer, is sealed"
            " into an intent that is queued, leased to one flusher, and delivered. Usage that Stripe refuses is dead,"
            " uncertain usage is parked, usage for a closed period is late."
        ),
    )
    drawing.box(20, 40, 130, 60, "recorded", small="once, for good", kind="strong")
    pays = (
        ("included", "by the plan"),
        ("grants", "by priority, expiry"),
        ("credits", "at the meter's cost"),
    )
    for nth, (name, small) in enumerate(pays):
        x = 196 + nth * 164
        drawing.box(x, 40, 142, 60, name, small=small, kind="tint")
        drawing.line((x - (46 if nth == 0 else 22), 70), (x - 3, 70))
    drawing.line((666, 70), (719, 70))
    drawing.box(722, 40, 178, 60, "overage", small="on a plan that says bill", kind="warm")
    drawing.text(
        196, 28, "what pays it, in this order; nothing is classified again later", size=12.5, colour="quiet"
    )
    drawing.text(355, 124, "never sent to Stripe", size=12.5, colour="quiet")
    drawing.text(355, 141, "(included is, with report: usage)", size=12, colour="quiet")
    drawing.line((811, 100), (811, 187), colour="warm-edge", wide=2)
    drawing.box(722, 190, 178, 56, "pending", small="gathered for five minutes")
    drawing.line((811, 246), (811, 301), dashed=True)
    drawing.box(722, 304, 178, 56, "unlinked", small="waits for a Stripe customer")
    drawing.line((722, 218), (641, 218), colour="warm-edge", wide=2)
    drawing.text(681, 209, "seal", size=12.5, anchor="middle", mono=True)
    drawing.box(496, 190, 142, 56, "queued", small="an intent, unchanging")
    drawing.line((496, 218), (415, 218), colour="warm-edge", wide=2)
    drawing.text(455, 209, "lease", size=12.5, anchor="middle", mono=True)
    drawing.box(270, 190, 142, 56, "leased", small="by one flusher")
    drawing.line((270, 218), (173, 218), colour="warm-edge", wide=2)
    drawing.box(20, 190, 150, 56, "delivered", small="Stripe has accepted it", kind="strong")
    drawing.line((95, 246), (95, 301), colour="strong", wide=2)
    drawing.box(20, 304, 150, 56, "invoice", small="by Stripe's own prices", kind="tint")
    drawing.line((315, 246), (250, 301), colour="stop-edge", dashed=True)
    drawing.line((341, 246), (341, 301), colour="stop-edge", dashed=True)
    drawing.box(192, 304, 102, 56, "dead", small="never accepted", kind="stop")
    drawing.box(306, 304, 122, 56, "parked", small="a person decides", kind="stop")
    drawing.line((383, 246), (470, 268), (496, 240), dashed=True)
    drawing.text(444, 285, "no response: again, under the", size=12, colour="quiet")
    drawing.text(444, 301, "same identifier, for 23 hours", size=12, colour="quiet")
    drawing.text(
        460,
        396,
        "At every instant:  what was recorded and goes to Stripe  =",
        size=13,
        anchor="middle",
        bold=True,
    )
    drawing.text(
        460,
        416,
        "pending + unlinked + queued + leased + parked + delivered + late + dead",
        size=13,
        anchor="middle",
        mono=True,
    )
    return drawing


def periods() -> Drawing:
    """Periods, windows and holds."""
    drawing = Drawing(
        "periods",
        920,
        420,
        title="Periods, windows and holds",
        told=(
            "Included quantities last for a billing period and begin anew with the next. A rate looks back over its window,"
            " across periods. A reservation holds its tokens from admission until the true quantity is captured, and"
            " belongs to the period in which it ends. The hold of a process that was killed vanishes by itself."
        ),
    )
    left, change, right = 150, 610, 900
    drawing.text(20, 62, "period", bold=True)
    drawing.box(left, 40, change - left - 3, 34, "June", kind="tint")
    drawing.box(change + 3, 40, right - change - 3, 34, "July", kind="tint")
    drawing.line((change, 28), (change, 396), colour="warm-edge", dashed=True, head=False)
    drawing.text(change, 20, "included begins anew", size=12.5, anchor="middle", colour="warm-edge")
    drawing.text(20, 118, "rate", bold=True)
    drawing.text(20, 135, "5 hours, sliding", size=12, colour="quiet")
    for x in (182, 236, 250, 318, 402):
        drawing.bar(x, 106, 7, 24, colour="peer")
    for x in (436, 512, 548, 586, 640, 668):
        drawing.bar(x, 106, 7, 24, colour="strong")
    drawing.line((430, 150), (686, 150), colour="strong", head=False, wide=2.4)
    drawing.line((430, 144), (430, 156), colour="strong", head=False)
    drawing.line((686, 144), (686, 156), colour="strong", head=False)
    drawing.text(686, 172, "now", size=12.5, anchor="middle")
    drawing.text(548, 172, "counts, whatever the period", size=12, anchor="middle", colour="quiet")
    drawing.text(20, 216, "a stream", bold=True)
    drawing.text(20, 233, "reserve: 4,096", size=12, colour="quiet")
    drawing.box(470, 200, 240, 40, "held: 4,096 tokens", kind="warm")
    drawing.line((470, 256), (470, 243), head=True)
    drawing.text(470, 271, "admitted", size=12, anchor="middle", colour="quiet")
    drawing.line((710, 256), (710, 243), head=True)
    drawing.text(710, 271, "its response ends", size=12, anchor="middle", colour="quiet")
    drawing.box(712, 200, 92, 40, "812", kind="strong")
    drawing.text(816, 218, "recorded in July:", size=12, colour="quiet")
    drawing.text(816, 234, "there it ended", size=12, colour="quiet")
    drawing.text(20, 322, "a process", bold=True)
    drawing.text(20, 339, "that is killed", size=12, colour="quiet")
    drawing.box(200, 306, 120, 40, "held", kind="warm")
    drawing.line((314, 300), (330, 352), colour="stop-edge", head=False, wide=2.4)
    drawing.line((330, 300), (314, 352), colour="stop-edge", head=False, wide=2.4)
    drawing.line((322, 326), (500, 326), dashed=True)
    drawing.text(411, 318, "10 minutes at most", size=12, anchor="middle", colour="quiet")
    drawing.text(508, 331, "given back", size=13, bold=True)
    drawing.text(
        200, 374, "nothing recorded, nothing billed: in doubt meterkit under-bills", size=12, colour="quiet"
    )
    return drawing


def deployment() -> Drawing:
    """What runs where."""
    drawing = Drawing(
        "deployment",
        920,
        420,
        title="A deployment",
        told=(
            "A load balancer or gateway sends requests to several processes of the app, each with the middleware, on several"
            " hosts. All share one Redis or Valkey server with an append-only file and a replica. The flusher in the apps,"
            " or meterkit worker, delivers to Stripe. The command line looks at the same store."
        ),
    )
    drawing.box(16, 150, 136, 64, "gateway", small="says who it is\nx-customer-id", kind="tint")
    for nth in range(3):
        y = 40 + nth * 100
        drawing.line((152, 182), (221, y + 42))
        drawing.box(224, y, 236, 84, "", kind="box")
        drawing.box(236, y + 12, 106, 60, "meterkit", small="decides", kind="strong")
        drawing.box(352, y + 12, 96, 60, "your app")
        drawing.line((460, y + 42), (589, 168 + nth * 16), colour="strong", wide=2)
    drawing.text(342, 26, "processes, hosts: as many as you like", size=12.5, anchor="middle", colour="quiet")
    drawing.box(592, 140, 160, 88, "Redis or Valkey", small="append-only file,\nnoeviction", kind="tint")
    drawing.text(528, 106, "one round\ntrip", size=12, colour="quiet")
    drawing.line((672, 140), (672, 103), dashed=True)
    drawing.box(604, 44, 136, 56, "replica", small="if you have one")
    drawing.box(592, 300, 160, 64, "meterkit worker", small="or the flusher\nin each process", kind="strong")
    drawing.line((672, 300), (672, 231), colour="strong", wide=2)
    drawing.line((752, 332), (797, 332), colour="warm-edge", wide=2)
    drawing.box(800, 300, 104, 64, "Stripe", small="meter events", kind="warm")
    drawing.box(224, 346, 236, 56, "meterkit doctor, usage, …", small="the command line, wherever you are")
    drawing.line((460, 374), (540, 374), (540, 212), (589, 212), dashed=True)
    return drawing


def figures() -> list[tuple[str, float, bool]]:
    """What the page on benchmarks says of the CPU per request in process: variant, microseconds, ours."""
    page = (DOCS / "benchmarks.md").read_text("utf-8")
    _, _, rest = page.partition("\n## In process, per request\n")
    table, _, _ = rest.partition("\n## ")
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \(", table, re.MULTILINE)
    found = {title: next(float(us) for row, us in rows if row.startswith(title)) for title in BARS}
    return [(BARS[title], us, title.startswith("meterkit")) for title, us in found.items()]


# How many of them bill, and come first.
BILLED = 2
# The rows of the page that are drawn, by how they begin, and their names in the drawing.
BARS = {
    "composite": "by hand: limits, a quota, HINCRBY",
    "meterkit (b)": "meterkit: two rates, quota, billing",
    "asgi-ratelimit": "asgi-ratelimit: one rate",
    "slowapi": "slowapi: one rate",
    "limits, sliding window": "limits: one rate, sliding",
    "throttled-py, fixed window": "throttled-py: one rate, fixed",
    "meterkit (a)": "meterkit: two rates",
}


def cost() -> Drawing:
    """What a request costs, beside today's way."""
    drawn = figures()
    ran = re.search(r"^- (\d{4}-\d\d-\d\d)", (DOCS / "benchmarks.md").read_text("utf-8"), re.MULTILINE)
    told = "; ".join(f"{said}: {value:g}" for said, value, _ in drawn)
    drawing = Drawing(
        "cost",
        920,
        330,
        title="CPU that a request costs beyond the bare app, in microseconds",
        told=f"{told}.",
    )
    drawing.text(
        20, 24, "CPU per request beyond the bare app, in microseconds (less is better)", bold=True, size=15
    )
    drawing.text(900, 24, f"run of {ran[1]}" if ran else "", size=12, anchor="end", colour="quiet")
    most = max(value for _, value, _ in drawn)
    y = 44.0
    for nth, (said, value, ours) in enumerate(drawn):
        if nth == BILLED:
            drawing.text(20, y + 22, "rates only, nothing billed", size=12, colour="quiet")
            drawing.line((190, y + 18), (900, y + 18), colour="edge", head=False, wide=1)
            y += 32
        drawing.text(318, y + 18, said, size=13.5, anchor="end", bold=ours)
        width = 510 * value / most
        drawing.bar(330, y + 3, width, 22, colour="strong" if ours else "peer")
        drawing.text(330 + width + 8, y + 19, f"{value:g}", size=13.5, bold=ours)
        y += 34
    return drawing


def lifecycle() -> Drawing:
    """Status at Stripe, and access here."""
    drawing = Drawing(
        "lifecycle",
        920,
        470,
        title="Status and access",
        told=(
            "A subscription that is active or trialing has full access. After a failed payment it is past due: in grace at"
            " first, restricted after the third failed attempt or when grace is over, suspended from suspend_after on; a"
            " payment leads back to full access from each. Unpaid is suspended, paused is restricted. One"
            " that is canceled or expired leaves full access to the default plan."
        ),
    )
    drawing.text(20, 28, "what Stripe says", size=12.5, colour="quiet")
    drawing.text(20, 250, "what the customer may do", size=12.5, colour="quiet")
    drawing.box(20, 44, 130, 56, "trialing")
    drawing.box(196, 44, 130, 56, "active", kind="strong")
    drawing.box(396, 44, 228, 56, "past_due", small="an attempt to collect has failed", kind="warm")
    drawing.box(694, 44, 206, 56, "unpaid", small="Stripe has given up", kind="stop")
    drawing.box(396, 146, 228, 56, "paused", kind="warm")
    drawing.box(20, 146, 306, 56, "canceled, incomplete_expired", small="the end")
    drawing.line((150, 72), (193, 72))
    drawing.line((326, 62), (393, 62), colour="warm-edge")
    drawing.line((396, 84), (329, 84), colour="strong")
    drawing.text(361, 54, "fails", size=12, anchor="middle", colour="warm-edge")
    drawing.text(361, 102, "paid", size=12, anchor="middle", colour="strong")
    drawing.line((624, 72), (691, 72), colour="stop-edge")
    drawing.line((261, 100), (261, 143))
    drawing.text(272, 127, "cancel_at", size=12, colour="quiet", mono=True)
    drawing.line((85, 100), (85, 143), dashed=True)
    drawing.line((300, 100), (300, 122), (510, 122), (510, 143), dashed=True)
    drawing.line((20, 226), (900, 226), colour="edge", dashed=True, head=False, wide=1.2)
    drawing.box(20, 268, 190, 62, "full", small="the plan, or after the end\nthe default plan", kind="strong")
    drawing.box(262, 268, 180, 62, "grace", small="served as before", kind="tint")
    drawing.box(494, 268, 180, 62, "restricted", small="the plan restrict_to", kind="warm")
    drawing.box(726, 268, 174, 62, "suspended", small="402", kind="stop")
    drawing.line((210, 288), (259, 288), colour="warm-edge")
    drawing.line((442, 299), (491, 299), colour="warm-edge")
    drawing.line((674, 299), (723, 299), colour="stop-edge")
    drawing.text(236, 260, "1st failure", size=12, anchor="middle", colour="warm-edge")
    drawing.text(467, 260, "3rd failure, or grace is over", size=12, anchor="middle", colour="warm-edge")
    drawing.text(699, 260, "suspend_after is over", size=12, anchor="middle", colour="stop-edge")
    drawing.line((813, 330), (813, 372), (115, 372), (115, 333), colour="strong")
    drawing.line((584, 330), (584, 372), colour="strong", head=False)
    drawing.line((352, 330), (352, 372), colour="strong", head=False)
    drawing.text(467, 392, "paid, at any time", size=12.5, anchor="middle", colour="strong")
    drawing.text(
        460,
        436,
        "The clock turns these at their millisecond, in every process;",
        size=13,
        anchor="middle",
        bold=True,
    )
    drawing.text(
        460, 456, "the ledger and the handlers hear of it within half a minute.", size=13, anchor="middle"
    )
    return drawing


ALL = (request, bill, periods, deployment, cost, lifecycle, storage, messages, movements, simulation, growth)


def main() -> None:
    """Write all of them."""
    place = Path(sys.argv[1]) if sys.argv[1:] else PLACE
    for make in ALL:
        drawing = make()
        (place / f"{drawing.name}.svg").write_text(drawing.svg(), "utf-8")


if __name__ == "__main__":
    main()
