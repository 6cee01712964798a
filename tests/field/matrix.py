"""The table of the field tests: a line for each deployment, printed when all have run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from field.deployments import Deployment

LINE = "field matrix"


class Matrix:
    """Takes what came of a deployment.

    Args:
        record: keeps a property of the test that is running.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def add(
        self,
        deployment: Deployment,
        *,
        served: Mapping[str, int],
        recorded: Mapping[str, int],
        billed: Mapping[str, int],
    ) -> None:
        where = f"{deployment.server:18} {deployment.loop:8} {deployment.lifespan:8}"
        if served == recorded == billed:
            figures = "  ".join(f"{meter} {quantity}" for meter, quantity in served.items())
            self._record(LINE, f"{where} served = recorded = billed  {figures}")
        else:
            self._record(LINE, f"{where} DIFFERS  served {served}  recorded {recorded}  billed {billed}")

    def note(self, line: str) -> None:
        self._record(LINE, line)
