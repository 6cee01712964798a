"""Idempotency keys of requests: one whose key was seen is a repeat, decided and counted once."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from meterkit.decisions.limit_policies import CEILING
from meterkit.decisions.packed import merge_json
from meterkit.redis.connection import ReplyError, pack_each
from meterkit.store.replies import ALLOWED, IN_FLIGHT, REPEAT
from meterkit.store.views import PreparedDecision

if TYPE_CHECKING:
    from starlette.types import Scope

    from meterkit.catalog import Route
    from meterkit.store.prepared_decisions import Prepare
    from meterkit.store.views import CustomerView


def repeat_digest(route: Route, scope: Scope) -> str | None:
    """Digest of a request's idempotency key; None: it has none, or an empty one.

    It covers method, path and all values of the route's header, whichever of them the app reads. The root
    path counts as well: where an app is mounted, some servers leave it out of the path.
    """
    name = route.idempotency_header
    if name is None or scope["type"] != "http":
        return None
    wanted = name.lower().encode("latin-1")
    values = [value for key, value in scope["headers"] if key.lower() == wanted]
    if not any(values):
        return None
    digest = blake2b(digest_size=16)
    paths = (path.encode("utf-8", "surrogatepass") for path in (scope.get("root_path", ""), scope["path"]))
    for part in (scope["method"].upper().encode(), *paths, *values):
        digest.update(b"%d:%b" % (len(part), part))
    return digest.hexdigest()


def mark_requests(prepare: Prepare, digest: str) -> Prepare:
    """Wrap ``prepare`` for a request with an idempotency key.

    Args:
        prepare: prepares the decision without the key.
        digest: of the key, in hex digits.
    """

    def prepare_marked(view: CustomerView, mode: str) -> PreparedDecision:
        decision = prepare(view, mode)
        return decision if decision.refusal is not None else MarkedDecision(decision, digest)

    return prepare_marked


class MarkedDecision(PreparedDecision):
    """Decision about a request with an idempotency key: marks it as in flight, or finds that it is a repeat.

    Args:
        decision: the decision without the key.
        digest: of the key.
    """

    __slots__ = ()

    def __init__(self, decision: PreparedDecision, digest: str) -> None:
        for name in PreparedDecision.__slots__:
            setattr(self, name, getattr(decision, name))
        self.digest = digest
        # The mark is given back as well, whatever the plan limits.
        self._holds = bool(digest or decision.reserved) or decision.program.holds
        self.settles = decision.program.settles or bool(digest)
        self.settlements = {}
        self.packed = self._pack()

    def as_repeat(self) -> PreparedDecision:
        """Decision for the settlement of a repeat, which holds no quantities and records nothing."""
        repeat = MarkedDecision(self, "")
        repeat.is_repeat = True
        repeat.held = repeat.recorded = {}
        repeat.subjects = {
            kind: hold._replace(quantities={}, spent=0) for kind, hold in self.subjects.items()
        }
        return repeat

    def on_unclaimed_reply(self, reply: Any) -> None:
        """Release the hold of a request whose waiting was cancelled."""
        if isinstance(reply, ReplyError):
            return
        if reply[0] == REPEAT:
            self.as_repeat().on_unclaimed_reply([ALLOWED, *reply[1:]])
        elif reply[0] == IN_FLIGHT and self.shadow:
            super().on_unclaimed_reply([ALLOWED, *reply[1:]])
        else:
            super().on_unclaimed_reply(reply)

    def _pack(self) -> tuple[bytes, bytes]:
        """Pack as :meth:`CustomerView.pack_decide` does, with the marks' key and the digest."""
        view, program = self.view, self.exact()
        own = len(program.measures) - sum(len(one.measures) for one in program.subjects)
        keys, ceilings = view.keys, sum(measure.kind == CEILING for measure in program.measures[:own])
        others = view.pack_subjects(program.subjects)
        further = merge_json(f'{{"digest":"{self.digest}","ceilings":{ceilings}}}', program.extra_terms)
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
