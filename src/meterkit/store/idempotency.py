"""Idempotency keys: the key of a request, and decisions about requests that may repeat an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from meterkit.decisions.packed import joined
from meterkit.decisions.policies import CEILING
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.store.replies import ALLOWED, IN_FLIGHT, REPEAT
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.store.views import CustomerView


def repeat_digest(route: Route, scope: Scope) -> str | None:
    """A digest of what makes a request the same as another of the customer; None: it has no idempotency key.

    That is method, path and the values of the route's header, all of them where there are several: whichever
    the app looks at, it is the same. An empty one is none.
    """
    name = route.idempotency_header
    if name is None or scope["type"] != "http":
        return None
    wanted = name.lower().encode("latin-1")
    values = [value for key, value in scope["headers"] if key.lower() == wanted]
    if not any(values):
        return None
    digest = blake2b(digest_size=16)
    for part in (scope["method"].upper().encode(), scope["path"].encode("utf-8", "surrogatepass"), *values):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()


Prepare = Callable[["CustomerView", str], PreparedDecision]
"""Makes a decision of a customer's view, in a mode of the decision script."""


def marking(prepare: Prepare, digest: str) -> Prepare:
    """What makes the decision about a request with an idempotency key.

    Args:
        prepare: makes it of one without.
        digest: of the key, in hex digits.
    """

    def prepare_marked(view: CustomerView, mode: str) -> PreparedDecision:
        decision = prepare(view, mode)
        return decision if decision.refusal is not None else MarkedDecision(decision, digest)

    return prepare_marked


class MarkedDecision(PreparedDecision):
    """A decision that marks its request as in flight, or says that it is a repeat.

    Args:
        decision: the same without an idempotency key.
        digest: of the key.
    """

    __slots__ = ()

    def __init__(self, decision: PreparedDecision, digest: str) -> None:
        for name in PreparedDecision.__slots__:
            setattr(self, name, getattr(decision, name))
        self.digest = digest
        self.settlements = {}
        self.packed = self._packed()

    def as_repeat(self) -> PreparedDecision:
        """The settlement of a repeat: it holds no quantities, and records nothing."""
        repeat = MarkedDecision(self, "")
        repeat.is_repeat = True
        repeat.held = repeat.recorded = {}
        repeat.subjects = {
            kind: hold._replace(quantities={}, spent=0) for kind, hold in self.subjects.items()
        }
        return repeat

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Give back what was held for a request whose waiting was cancelled."""
        if isinstance(reply, ReplyError):
            return
        if reply[0] == REPEAT:
            self.as_repeat().on_unclaimed_reply([ALLOWED, *reply[1:]])
        elif reply[0] == IN_FLIGHT and self.shadow:
            super().on_unclaimed_reply([ALLOWED, *reply[1:]])
        else:
            super().on_unclaimed_reply(reply)

    def _packed(self) -> tuple[bytes, bytes]:
        """See :meth:`CustomerView.pack_decide`; with the marks' key, and the digest beside all else."""
        view, program = self.view, self.exact()
        own = len(program.measures) - sum(len(one.measures) for one in program.subjects)
        keys, ceilings = view.keys, sum(measure.kind == CEILING for measure in program.measures[:own])
        others = view.pack_subjects(program.subjects)
        further = joined(f'{{"digest":"{self.digest}","ceilings":{ceilings}}}', program.further)
        first = (keys.counters, keys.state, keys.totals, keys.grants, keys.ledger, keys.levels, keys.marks)
        names = (*first, *others.keys)
        head: tuple[str | int, ...] = ("EVALSHA", view.cache.decide.sha, len(names), *names, view.rev)
        tail: tuple[str | bytes, ...] = (
            view.terms(program.keep_ms, *program.numbers),
            self.mode,
            further,
            *program.fields,
        )
        # Behind these: the clock.
        count = len(head) + len(tail) + others.width + 1
        return b"*%d\r\n%b" % (count, pack_each(head)), pack_each(tail) + others.arguments
