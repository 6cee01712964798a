"""Drawings of the pages on storage, messages, revenue and trying prices."""

from __future__ import annotations

from svg import Drawing


def storage() -> Drawing:
    """How a stored object comes to count."""
    drawing = Drawing(
        "storage",
        920,
        330,
        title="Stored objects and the gauge",
        told=(
            "MinIO, SNS and EventBridge post events, and a worker reads a queue. One script keeps size, type and last"
            " sequencer of each object and version, and moves the customer's gauge. Each hour a listing of the buckets is"
            " compared and corrects it. A presigned upload holds its bytes until its event arrives, at most an hour."
        ),
    )
    drawing.box(20, 40, 190, 62, "MinIO, SNS,\nEventBridge")
    drawing.box(20, 134, 190, 62, "SQS", small="meterkit worker\n--storage-queue")
    drawing.box(20, 228, 190, 62, "bucket", small="objects and versions")
    drawing.box(352, 87, 216, 62, "shelve", kind="strong", small="one script: size, type,\nlast sequencer")
    drawing.box(352, 228, 216, 62, "recalculate", kind="tint", small="list, compare, correct")
    drawing.box(710, 87, 190, 62, "gauge", kind="tint", small="bytes, and by type")
    drawing.box(710, 228, 190, 62, "presign", kind="warm", small="bytes held\nfor an upload")
    drawing.line((210, 71), (280, 71), (280, 108), (349, 108))
    drawing.text(222, 62, "posts", size=12, colour="quiet")
    drawing.line((210, 165), (280, 165), (280, 128), (349, 128))
    drawing.text(222, 156, "reads", size=12, colour="quiet")
    drawing.line((210, 259), (349, 259))
    drawing.text(222, 250, "each hour", size=12, colour="quiet")
    drawing.line((568, 118), (707, 118), colour="strong", wide=2)
    drawing.text(638, 109, "exact to the byte", size=12, anchor="middle", colour="quiet")
    drawing.line((460, 228), (460, 152), dashed=True)
    drawing.text(472, 196, "what differs", size=12, colour="quiet")
    drawing.line((805, 228), (805, 152), colour="warm-edge")
    drawing.text(816, 186, "until the event\narrives", size=12, colour="quiet")
    return drawing


def messages() -> Drawing:
    """How an event becomes a message that arrives once."""
    drawing = Drawing(
        "messages",
        920,
        300,
        title="From an event to one message for each channel",
        told=(
            "The scripts and the clock write events. Each is put into a queue of the store once for each cause and"
            " channel. A courier sends it as a signed webhook or an e-mail, tries again for three days, and then keeps it"
            " as dead, until an operator redrives it."
        ),
    )
    drawing.box(20, 104, 190, 62, "event", small="threshold, spike, dunning,\ntrial, storage, period")
    drawing.box(300, 104, 190, 62, "queue", kind="strong", small="once for each\ncause and channel")
    drawing.box(590, 34, 140, 62, "webhook", kind="tint", small="Standard Webhooks")
    drawing.box(590, 174, 140, 62, "e-mail", kind="tint", small="SMTP, templates")
    drawing.box(780, 104, 120, 62, "arrived", kind="tint", small="one webhook-id")
    drawing.box(300, 222, 190, 56, "dead", kind="stop", small="after three days, or a 5xx")
    drawing.line((210, 135), (297, 135))
    drawing.line((490, 125), (540, 125), (540, 65), (587, 65))
    drawing.line((490, 145), (540, 145), (540, 205), (587, 205))
    drawing.line((730, 65), (840, 65), (840, 101), colour="strong")
    drawing.line((730, 205), (840, 205), (840, 169), colour="strong")
    drawing.line((395, 166), (395, 219), colour="stop-edge")
    drawing.line((300, 250), (250, 250), (250, 154), (297, 154), dashed=True)
    drawing.text(24, 246, "meterkit notify redrive", size=12, colour="quiet", mono=True)
    return drawing


def movements() -> Drawing:
    """What changes monthly recurring revenue."""
    drawing = Drawing(
        "movements",
        920,
        330,
        title="Movements of monthly recurring revenue",
        told=(
            "From the MRR at the beginning of a day to that at its end: new, expansion and reactivation add, contraction"
            " and churn take away, and the sum of the five is the change exactly."
        ),
    )
    ground, unit, at = 282, 0.5, 40
    drawing.line((20, ground), (900, ground), colour="edge", head=False, wide=1.2)
    level, steps = (
        260,
        (("new", 90), ("expansion", 60), ("reactivation", 40), ("contraction", -50), ("churn", -70)),
    )
    drawing.box(at, ground - level * unit, 96, level * unit, "MRR", kind="tint", small="the day before")
    for name, change in steps:
        at += 122
        top = ground - max(level, level + change) * unit
        drawing.box(at, top, 96, abs(change) * unit, kind="strong" if change > 0 else "stop")
        sign = "+" if change > 0 else "\u2212"
        drawing.text(at + 48, ground + 20, f"{sign} {name}", size=13, anchor="middle")
        drawing.line(
            (at - 26, ground - level * unit),
            (at, ground - level * unit),
            colour="edge",
            dashed=True,
            head=False,
        )
        level += change
    drawing.line(
        (at + 96, ground - level * unit),
        (at + 122, ground - level * unit),
        colour="edge",
        dashed=True,
        head=False,
    )
    drawing.box(at + 122, ground - level * unit, 96, level * unit, "MRR", kind="tint", small="of the day")
    drawing.text(40, 40, "The five add up to the change, to the micro-cent.", size=13, bold=True)
    return drawing


def simulation() -> Drawing:
    """The three ways in which a customer's usage is tried."""
    drawing = Drawing(
        "simulation",
        920,
        330,
        title="How usage is tried under another plans file",
        told=(
            "The rows of the period are copied from the audit log. Sums decide where nothing is refused and no grant pays;"
            " a customer who passes a ceiling is gone through event by event; where a rate, a grant or a credit may have a"
            " say, an embedded store serves the events again by the scripts. Some are tried both ways and compared."
        ),
    )
    drawing.box(20, 134, 170, 62, "audit log", small="rows of the period")
    drawing.box(
        270, 134, 180, 62, "DuckDB", kind="tint", small="sums, ceilings passed,\nrates perhaps passed"
    )
    drawing.box(540, 30, 200, 62, "sums", small="nothing refused,\nno grant pays")
    drawing.box(540, 134, 200, 62, "event by event", small="a ceiling is passed")
    drawing.box(
        540,
        238,
        200,
        62,
        "an embedded store",
        kind="strong",
        small="a rate, a grant or a credit\nmay have a say",
    )
    drawing.box(800, 134, 100, 62, "bill", kind="tint", small="and who is\nrefused")
    drawing.line((190, 165), (267, 165))
    drawing.line((450, 150), (495, 150), (495, 61), (537, 61))
    drawing.line((450, 165), (537, 165))
    drawing.line((450, 180), (495, 180), (495, 269), (537, 269))
    drawing.line((740, 61), (850, 61), (850, 131), colour="strong")
    drawing.line((740, 165), (797, 165), colour="strong")
    drawing.line((740, 269), (850, 269), (850, 199), colour="strong")
    drawing.text(20, 296, "Twenty customers are tried both ways, and compared.", size=12.5, colour="quiet")
    return drawing
