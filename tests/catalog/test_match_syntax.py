from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import compile_path

from meterkit.catalog.errors import RefusedError
from meterkit.catalog.match_lines import CONVERTORS, METHODS, parse_match


@pytest.mark.parametrize(
    ("match", "method", "path"),
    [
        ("*", None, None),
        ("/", None, "/"),
        ("/v1/{path:path}", None, "/v1/{path:path}"),
        ("POST /v1/chat", "POST", "/v1/chat"),
        ("  GET   /a ", "GET", "/a"),
        ("WS /live", "WS", "/live"),
        ("GET /v1/models/{name}:predict", "GET", "/v1/models/{name}:predict"),
        ("GET /größe/{id:uuid}/x.{ext}", "GET", "/größe/{id:uuid}/x.{ext}"),
    ],
)
def test_a_match_is_a_method_and_a_path(match: str, method: str | None, path: str | None) -> None:
    assert (method, path) == parse_match(match)


def test_the_convertors_are_starlettes() -> None:
    assert set(CONVERTORS) <= set(CONVERTOR_TYPES)


@given(
    st.sampled_from([*METHODS, ""]),
    st.lists(
        st.sampled_from(
            ["a", "{id}", "{id:int}", "{path:path}", "{", "}", "{x:bad}", ":id", "*", "<a>", "é", ""]
        )
    ),
)
def test_what_is_accepted_compiles_in_starlette(method: str, segments: list[str]) -> None:
    try:
        _, path = parse_match(f"{method} /{'/'.join(segments)}")
    except RefusedError:
        return
    assert path is not None
    compile_path(path)
