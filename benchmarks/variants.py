"""What is measured: one line per variant, and how each is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from driver import Target
from peers.streaming import PATH as STREAM_PATH
from peers.streaming import question

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Kind = Literal["bare", "peer", "memory", "composite", "meterkit"]
LABELS = {
    "meterkit-decide": "(a)",
    "meterkit-settle": "(b)",
    "meterkit-hot-decide": "hot (a)",
    "meterkit-hot-settle": "hot (b)",
    "meterkit-three": "three meters",
}
"""The rows of meterkit that peers are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One application behind one limiter.

    Attributes:
        bare: the variant without a limiter whose cost is subtracted.
        timed: False where only its keys and memory are looked at.
        over_http: whether it is also measured under uvicorn.
        target: a customer's request; its path and body are those of all.
        reads: whether it reads the usage off its responses.
        customers: how many send the requests; 0: as many as the run has.
        compared_with: the variant of meterkit that does a similar job.
    """

    name: str
    title: str
    kind: Kind
    module: str
    function: str = "build"
    bare: str = "bare"
    timed: bool = True
    over_http: bool = False
    target: Target = field(default=Target(""))
    reads: bool = False
    customers: int = 0
    compared_with: str = ""

    @property
    def request_factor(self) -> int:
        """So many times the requests of others: one ends at once, and allotments take a moment to grow."""
        return 10 if self.customers == 1 or self.name == "bare" else 1

    def build(self, redis_url: str) -> ASGIApp:
        module = importlib.import_module(f"peers.{self.module}")
        return getattr(module, self.function)(redis_url)


def _peer(name: str, title: str, module: str, function: str = "build", **more) -> Variant:
    more.setdefault("compared_with", "meterkit-decide")
    return Variant(name=name, title=title, kind="peer", module=module, function=function, **more)


def _memory(name: str, title: str, function: str, compared_with: str = "meterkit-hot-decide") -> Variant:
    return Variant(
        name=name,
        title=f"{title}, in memory of one process, one customer",
        kind="memory",
        module="in_memory",
        function=function,
        customers=1,
        compared_with=compared_with,
    )


def _meterkit(name: str, title: str, function: str, **more) -> Variant:
    return Variant(name=name, title=title, kind="meterkit", module="meterkit_app", function=function, **more)


def _stream(name: str, title: str, kind: Kind, function: str, **more) -> Variant:
    return Variant(
        name=name,
        title=title,
        kind=kind,
        module="streaming",
        function=function,
        bare="bare-stream",
        target=Target("", STREAM_PATH, question()),
        **more,
    )


VARIANTS = (
    Variant(name="bare", title="bare Starlette app", kind="bare", module="bare", over_http=True),
    Variant(
        name="bare-fastapi",
        title="bare FastAPI app",
        kind="bare",
        module="bare",
        function="build_fastapi",
        bare="bare-fastapi",
    ),
    _peer("limits-fixed", "limits, fixed window", "limits_aio", "build_fixed"),
    _peer("limits-moving", "limits, moving window", "limits_aio", "build_moving"),
    _peer("limits-sliding", "limits, sliding window", "limits_aio", "build_sliding", over_http=True),
    _peer("slowapi", "slowapi, ASGI middleware, fixed window", "slow_api"),
    _peer("asgi-ratelimit", "asgi-ratelimit", "asgi_ratelimit"),
    _peer("throttled-fixed", "throttled-py, fixed window", "throttled_py", "build_fixed"),
    _peer("throttled-bucket", "throttled-py, token bucket", "throttled_py", "build_token_bucket"),
    _peer(
        "throttled-fastapi",
        "throttled-py, FastAPI integration",
        "throttled_py",
        "build_fastapi",
        bare="bare-fastapi",
    ),
    _peer("fastapi-redis-sdk", "fastapi-redis-sdk", "fastapi_redis_sdk", bare="bare-fastapi"),
    _peer(
        "limits-three",
        "limits, three sliding windows",
        "limits_aio",
        "build_three",
        timed=False,
        compared_with="meterkit-three",
    ),
    Variant(
        name="composite",
        title="composite: sliding window, quota and usage in one pipeline",
        kind="composite",
        module="composite",
        compared_with="meterkit-settle",
        over_http=True,
    ),
    _memory("limits-memory", "limits, fixed window", "build_limits"),
    _memory("throttled-memory", "throttled-py, fixed window", "build_throttled"),
    _memory("rust-memory", "rust-py-rate-limit, fixed window", "build_rust"),
    _memory(
        "composite-memory",
        "composite: sliding window, quota and usage",
        "build_composite",
        "meterkit-hot-settle",
    ),
    _meterkit("meterkit-decide", "meterkit (a): two rates, decide alone", "build_decide", over_http=True),
    _meterkit(
        "meterkit-settle",
        "meterkit (b): two rates, included, billed: decide and settle",
        "build_settle",
        over_http=True,
    ),
    _meterkit(
        "meterkit-hot-decide",
        "meterkit (a), one customer, with allotments",
        "build_hot_decide",
        over_http=True,
        customers=1,
    ),
    _meterkit(
        "meterkit-hot-settle",
        "meterkit (b), one customer, with allotments",
        "build_hot_settle",
        over_http=True,
        customers=1,
    ),
    _meterkit("meterkit-settle-metrics", "meterkit (b), counting for metrics", "build_settle_with_metrics"),
    _meterkit("meterkit-spend", "meterkit (b), each request at a price, under a budget", "build_spend"),
    _meterkit(
        "meterkit-subjects",
        "meterkit (b), at a price, under budgets of customer, team and user",
        "build_subjects",
    ),
    _stream("bare-stream", "bare stream of 20 chunks", "bare", "build"),
    _stream("meterkit-stream-settle", "meterkit, stream: decide and settle", "meterkit", "build_settle"),
    _stream(
        "meterkit-stream",
        "meterkit, stream: reserved, usage read, captured",
        "meterkit",
        "build_reserve",
        reads=True,
    ),
    _meterkit(
        "meterkit-three", "meterkit, three meters with a rate and a ceiling each", "build_three", timed=False
    ),
)

BY_NAME = {variant.name: variant for variant in VARIANTS}


def chosen(only: list[str]) -> tuple[Variant, ...]:
    """The variants whose name contains one of ``only`` (all, where it is empty), with their bare apps.

    Empty where no name does.
    """
    wanted = [v for v in VARIANTS if not only or any(part in v.name for part in only)]
    if not wanted:
        return ()
    names = {v.name for v in wanted} | {v.bare for v in wanted} | {"bare"}
    return tuple(v for v in VARIANTS if v.name in names)
