"""What the workers do: the work, and around it what it counts."""

from pathlib import Path

from meterkit import MeterKit

# Made before the fork, as the modules of a Celery app are: each worker connects with its first call.
kit = MeterKit(Path(__file__).with_name("plans.yaml")).sync()

LONGEST = 30


def shout(text: str) -> list[str]:
    """The work itself."""
    if not text:
        raise ValueError("there is nothing to shout")
    return text.upper().split()


def job(customer: str, text: str) -> str:
    """What would be a task of Celery's or a job of RQ's."""
    with kit.reserve(customer, {"jobs": 1, "words": LONGEST}) as reservation:
        if not reservation.decision.allowed:
            return f"refused: {reservation.decision.reason}"
        words = shout(text)
        reservation.capture({"jobs": 1, "words": len(words)})
    return f"{len(words)} words"
