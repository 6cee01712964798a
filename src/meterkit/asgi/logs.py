"""Logs of the middleware: refusals, troubles of store and app, lost token usage; without credentials."""

from __future__ import annotations

import logging
import re
from asyncio import get_running_loop
from functools import partial
from math import inf
from time import monotonic
from traceback import format_tb
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary

from meterkit.asgi.refusal_responses import word_shortfall
from meterkit.errors import MeterkitError, SettingsError, StoreError
from meterkit.log_throttle import MINUTE_S, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from starlette.types import Scope

    from llm_usage import CallUsage
    from llm_usage.call_usage import Note
    from meterkit.asgi.route_matching import Router
    from meterkit.catalog import Route
    from meterkit.decisions.decision import Decision
    from meterkit.redis.lane import Lane
    from meterkit.store.store import Store
    from meterkit.store.views import CustomerView

_SECRET_NAME: Final = re.compile(r"auth|cookie|key|password|secret|session|signature|token", re.IGNORECASE)
_WORD_ENDS: Final = re.compile(r"[\s,;=]+")
# Shorter words, such as `Bearer`, stand in errors by chance.
_LENGTH_MIN: Final = 8


class LogSampler:
    """Log sampler: admits the first lines of each span of time, then reports how many it withheld.

    Args:
        most: how many lines a span may have.
        every_s: how long a span is, in seconds.
        report_count: gets how many lines were withheld; called after the span, or by the next line.

    Attributes:
        last_s: when the last line came, by the monotonic clock.
    """

    def __init__(self, most: int, every_s: float, report_count: Callable[[int], None]) -> None:
        self._most = most
        self._every_s = every_s
        self._report_count = report_count
        self._began = self.last_s = -every_s
        self._written = 0
        self._withheld = 0

    def admits(self) -> bool:
        """Whether one more line may be written now; it is counted either way."""
        now = monotonic()
        if now - self._began >= self._every_s:
            self._report()  # Also where the loop that was to do it has ended.
            self._began, self._written = now, 0
        self.last_s = now
        if self._written < self._most:
            self._written += 1
            return True
        if not self._withheld:
            get_running_loop().call_later(self._began + self._every_s - now, self._report)
        self._withheld += 1
        return False

    def _report(self) -> None:
        if self._withheld:
            withheld, self._withheld = self._withheld, 0
            self._report_count(withheld)


_logger = logging.getLogger("meterkit.asgi")

_SPAN_S: Final = 10.0
# An outage may last for hours, and the store's own logger reports its beginning and its end.
_AWAY_SPAN_S: Final = 60.0
_SHOWN_MAX: Final = 100
_OF_THE_STORE: Final = (StoreError, SettingsError)


class TroubleLog:
    """Logs problems of the store, the app or the plans file to ``meterkit.asgi``."""

    def __init__(self) -> None:
        self._store = LogSampler(1, _AWAY_SPAN_S, self._log_more_undecided)
        self._identify = LogSampler(1, _SPAN_S, partial(_log_more, "failed in identify"))
        self._others = LogSampler(1, _SPAN_S, partial(_log_more, "met such an error"))
        self._wrong_types: set[type] = set()
        self._is_inner = self._has_second_kit = False
        self._preflights, self._paths = Throttle(MINUTE_S), Throttle(MINUTE_S)

    def log_undecided(self, error: Exception | None, route: Route, lane: Lane | None = None) -> None:
        """Log a request that the store could not decide.

        Args:
            error: why; None: the lane has its breaker open.
            route: the line.
            lane: the event loop's.
        """
        if error is None or isinstance(error, _OF_THE_STORE):
            if self._store.admits():
                message = "requests are decided without the store (on_store_failure: %s): %s"
                _logger.error(message, route.on_store_failure, error or (lane and lane.outage_error()))
        elif self._others.admits():
            _logger.error("a request of the route %a could not be decided", route.match, exc_info=error)

    def _log_more_undecided(self, number: int) -> None:
        _logger.error(
            "%d more requests were decided without the store within %.0f s, the last of them %.0f s ago",
            number,
            _AWAY_SPAN_S,
            monotonic() - self._store.last_s,
        )

    def log_unidentified(self, error: Exception | None, route: Route, scope: Scope) -> None:
        """Log that ``identify`` raised."""
        if self._identify.admits():
            message = "identify raised: the customer of a request of the route %a could not be determined"
            _logger.error(message, route.match, exc_info=error and hide_credentials(error, scope))

    def log_wrong_type(self, found: object) -> None:
        """Log once for each type that ``identify`` returned neither a text nor None."""
        kind = type(found)
        if kind not in self._wrong_types:
            self._wrong_types.add(kind)
            _logger.error(
                "identify returned a value of type %s; allowed is a text, the customer's id, or None: return"
                " str(...) of it; until then the customer of such requests cannot be determined",
                kind.__name__,
            )

    def log_inner(self) -> None:
        """Log once that an outer middleware of the same kit has the request already."""
        if not self._is_inner:
            self._is_inner = True
            _logger.warning(
                "MeterMiddleware wraps this app more than once for one kit: the outer one decides and counts,"
                " the inner one passes every request on, and does not use its identify, on_denied and cors;"
                " remove one of them"
            )

    def log_second_kit(self) -> None:
        """Log once that the middleware of another kit is outside of this one."""
        if not self._has_second_kit:
            self._has_second_kit = True
            _logger.warning(
                "MeterMiddleware wraps this app for two kits, and each decides and counts every request:"
                " usage counts twice; make one MeterKit and give it to all parts of the app, or remove one"
            )

    def log_ambiguous(self, scope: Scope, router: Router) -> None:
        """Log a path whose readings match different lines; at most once a minute."""
        if self._paths.is_due("path"):
            found = dict[str, str]()
            for one in router.readings(scope):
                found.setdefault(one.line.match if one.line else "no route", one.path)
            shown = ", ".join(f"{path[:_SHOWN_MAX]!a} ({match})" for match, path in found.items())
            _logger.warning(
                "a request was refused with 400, as its path %a can be read as paths of different routes: %s;"
                " write `paths: as_sent` on a route for object keys that hold dots or encoded slashes",
                scope["path"][:_SHOWN_MAX],
                shown,
            )

    def log_unasked(self, error: Exception) -> None:
        """Log that the wrapped app failed for `OPTIONS *`; at most once a minute."""
        if self._preflights.is_due("*"):
            _logger.warning(
                "the app's CORS layer could not be asked by `OPTIONS *`: %s", describe_error(error)
            )

    def log_unmatched(self, source: str, scope: Scope) -> None:
        """Log that no line of the plans file matches a request; the caller does so once."""
        _logger.warning(
            "%a matches no route of %s: it passes undecided and uncounted; further unmatched requests"
            ' are not logged; to decide them, add a last route with match: "*"',
            f"{scope.get('method', 'WS')} {scope['path']}"[:_SHOWN_MAX],
            source,
        )

    def log_preflight(self, route: Route, scope: Scope) -> None:
        """Log a CORS preflight that browsers take for a refusal; at most once a minute for a route."""
        if not self._preflights.is_due(route.match):
            return
        _logger.warning(
            "%s: meterkit has answered the CORS preflight OPTIONS %a itself, as no CORS layer of the whole"
            " app does; browsers will not send the request. Put the CORS middleware around the whole app, not"
            " around a mount, or name origins in `cors=`, or, if handlers answer preflights, add a route"
            ' {match: "OPTIONS /…", exempt: true}',
            route.match,
            scope["path"][:_SHOWN_MAX],
        )

    def log_without_mount(self, source: str, line: Route, found: Route | None, mount: str) -> None:
        """Log that a line lacks the path of the mount; the caller does so once."""
        method = "" if line.method is None else f"{line.method} "
        _logger.warning(
            "%s: the route %a does not match, because this app is mounted at %a and routes include that"
            " path: write %a; until then %s; further routes without it are not logged",
            source,
            line.match,
            mount[:_SHOWN_MAX],
            f"{method}{mount[:_SHOWN_MAX]}{line.path}",
            "such requests match no route" if found is None else f"such requests match {found.match!a}",
        )


def _log_more(what: str, number: int) -> None:
    _logger.error("%d more requests %s within %.0f s", number, what, _SPAN_S)


_refusals = logging.getLogger("meterkit.refusals")

_LINES_A_SECOND: Final = 10
# What browsers and people ask for by themselves, without credentials.
_USUALLY_OPEN: Final = frozenset({"/docs", "/redoc", "/openapi.json", "/favicon.ico", "/robots.txt"})


class RefusalLog:
    """Writes to the logger ``meterkit.refusals``, at most ten lines a second.

    The record of each has the attributes ``customer``, ``subjects``, ``plan``, ``reason``, ``limit``,
    ``needed``, ``left``, ``fault``, ``route``, ``status``, ``instance`` and ``shadow``; the line that tells
    how many were not written has ``suppressed``.
    """

    def __init__(self) -> None:
        self._sampler = LogSampler(_LINES_A_SECOND, 1.0, _log_suppressed)

    def log_refused(
        self,
        decision: Decision,
        route: Route,
        view: CustomerView | None,
        scope: Scope,
        *,
        status: int,
        instance: str | None,
    ) -> None:
        """Log a request that was refused, or a websocket that was closed."""
        if self._sampler.admits():
            fields = _refusal_fields(decision, route, view) | {"status": status, "instance": instance}
            words = _format_line(fields) + _exempt_hint(decision, scope)
            _refusals.warning("refused: %s", words, extra=fields | {"shadow": False})

    def log_shadowed(self, decision: Decision, route: Route, view: CustomerView) -> None:
        """Log a request that shadow mode served and enforcement would refuse."""
        if self._sampler.admits():
            fields = _refusal_fields(decision, route, view)
            extra = fields | {"status": None, "instance": None, "shadow": True}
            _refusals.warning(
                "would be refused, but enforcement is shadow: %s", _format_line(fields), extra=extra
            )


def _refusal_fields(decision: Decision, route: Route, view: CustomerView | None) -> dict[str, object]:
    subjects = None if view is None else view.subjects
    needed, left = None, None
    if decision.shortfall is not None and view is not None:
        needed, left = word_shortfall(decision.shortfall, view.catalog.currency)
    return {
        "customer": decision.customer,
        "subjects": None if subjects is None else dict(subjects.given),
        "plan": decision.plan,
        "reason": decision.cause,
        "limit": decision.limit,
        "needed": needed,
        "left": left,
        "route": route.match,
        "fault": decision.fault,
    }


def _format_line(fields: Mapping[str, object]) -> str:
    # As ASCII literals: whatever stands in a customer's id, it neither ends the line nor looks like a field.
    return " ".join(f"{name}={value!a}" for name, value in fields.items() if value is not None)


def _exempt_hint(decision: Decision, scope: Scope) -> str:
    path = scope["path"]
    if decision.reason != "anonymous" or path not in _USUALLY_OPEN:
        return ""
    return f'; if everyone may request it, put {{match: "GET {path}", exempt: true}} above this route'


def _log_suppressed(number: int) -> None:
    _refusals.warning(
        "%d more requests were refused, or would be in shadow, within a second", number,
        extra={"suppressed": number},
    )  # fmt: skip


_logger = logging.getLogger("meterkit.asgi")

CAUSES: Final[Mapping[Note, str]] = {
    "encoding": (
        "its content coding is not decoded here: compress outside of MeterMiddleware, or install what "
        "undoes it (brotli, zstandard)"
    ),
    "too_large": "it is larger than what is read of a response",
    "corrupt": "it is damaged, or compressed in another way than it says",
    "refused": "a figure in it is no integer from 0 to 10^15 - 1",
    "unreadable": "it is no JSON where there should be some",
    "beyond_whole": "a part of the tokens in it is larger than all of them",
    "too_many_calls": "it holds more calls than meterkit distinguishes",
    "not_asked": (
        "it ended without usage figures: a stream of OpenAI's Chat Completions, or of a server that speaks "
        'like it, has them only if the request has stream_options={"include_usage": true}'
    ),
}
"""Why figures of a response are not known."""
_NO_USAGE: Final = "it ended without usage figures"
# These mean that something was not counted although other figures of the call were.
_IN_PART: Final[tuple[Note, ...]] = ("beyond_whole", "refused", "too_many_calls")
_warned: Final[WeakKeyDictionary[Store, Throttle]] = WeakKeyDictionary()
_warned_of_unread: Final[WeakKeyDictionary[Store, Throttle]] = WeakKeyDictionary()


class ErrorGuard:
    """Context manager that keeps errors of meterkit from the app; may be entered again.

    Args:
        report: gets the error's description; see :func:`describe_error`.
    """

    __slots__ = ("_report",)

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or not isinstance(error, Exception):
            return False
        self._report(describe_error(error))
        return True


def describe_error(error: Exception) -> str:
    """Format the type and the traceback of an error, without its message, which may hold customer data."""
    return f"{type(error).__name__} at\n{''.join(format_tb(error.__traceback__))}"


def warn_of_lost(store: Store, route: str, calls: Iterable[CallUsage]) -> None:
    """Log the calls with missing or estimated figures, with the probable reason."""
    for call in calls:
        if call.outlives or "ended_early" in call.notes:
            continue  # The caller that broke it off knows why.
        if call.source in ("missing", "estimated"):
            cause = next((CAUSES[note] for note in CAUSES if note in call.notes), _NO_USAGE)
            how = "estimated" if call.source == "estimated" else "missing, and counts nothing"
            warn(store, route, f"token usage of a response is {how}: {cause}")
        else:
            for note in _IN_PART:
                if note in call.notes:
                    warn(store, route, f"token usage of a response was read in part: {CAUSES[note]}")


def warn_of_unread(store: Store, route: Route, path: str) -> None:
    """Log token figures that count nothing; once for each route."""
    if _warned_of_unread.setdefault(store, Throttle(inf)).is_due(route.match):
        _logger.warning(
            "%s: a response has a token figure at %a that `usage: %s` does not read: it counts nothing. Name"
            " the API by `usage: NAME`, or the path in `usage_fields`, or give the provider's response to"
            " meterkit.record_usage(); logged once for this route",
            route.match,
            path,
            route.usage,
        )


def warn_of_unfed(store: Store, route: Route, meter: str) -> None:
    """Log that a request held a meter and nothing was recorded for it; once for each route and meter."""
    if _warned_of_unread.setdefault(store, Throttle(inf)).is_due((route.match, meter)):
        _logger.warning(
            "%s: a request held %s, and neither its response nor the app said what it used: 0 is recorded."
            " Record it by meterkit.record(%s=…), name its path in `usage_fields`, or reserve a meter that"
            " `usage` feeds, such as output_tokens; logged once for this route",
            route.match,
            meter,
            meter,
        )


def warn_of_fetched(store: Store, route: Route, scope: Scope, call: CallUsage) -> None:
    """Log a call that was taken for a stored response whose id the URL does not name; once for each route."""
    name, query = call.response_id, scope.get("query_string", b"").decode("latin-1")
    if name is None or call.source == "missing" or name in scope["path"] or name in query:
        return
    if _warned_of_unread.setdefault(store, Throttle(inf)).is_due((route.match, "fetched")):
        _logger.warning(
            "%s: a request without a body got a model's response, which `usage: auto` takes for a stored one:"
            " it counts nothing. If the request calls the model, name the API by `usage: NAME`; logged once"
            " for this route",
            route.match,
        )


def warn(store: Store, route: str, message: str) -> None:
    """Log a warning of a route; the same one at most once a minute."""
    if _warned.setdefault(store, Throttle(MINUTE_S)).is_due((route, message)):
        _logger.warning("%s: %s", route, message)


def hide_credentials(error: Exception, scope: Scope) -> Exception:
    """Return an error to log for one of ``identify``: another where it tells a credential of the request."""
    try:
        is_safe = not any(tells(error, secret) for secret in _find_credentials(scope))
    except Exception:  # noqa: BLE001 - what cannot be read, such as an error of the app's own, is not shown
        is_safe = False
    if is_safe:
        return error
    hidden = MeterkitError(f"identify raised {type(error).__name__}; what it says has a credential")
    hidden.__suppress_context__ = True
    return hidden.with_traceback(error.__traceback__)


def tells(error: BaseException, secret: str) -> bool:
    """Whether a log of an error would have a secret: in its words, notes, or the errors that led to it."""
    words = [str(error), repr(error), *getattr(error, "__notes__", ())]
    if any(spelled in told for spelled in (secret, repr(secret)[1:-1]) for told in words):
        return True
    led: list[BaseException | None] = [error.__cause__]
    if not error.__suppress_context__:
        led.append(error.__context__)
    if isinstance(error, BaseExceptionGroup):
        led.extend(cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return any(tells(one, secret) for one in led if one is not None)


def _find_credentials(scope: Scope) -> Iterator[str]:
    """Find the words of headers and query parameters that are named like credentials."""
    given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    given += parse_qsl(scope["query_string"].decode("latin-1"))
    for name, value in given:
        if _SECRET_NAME.search(name):
            for word in (value, *_WORD_ENDS.split(value)):
                if len(word) >= _LENGTH_MIN:
                    yield word
