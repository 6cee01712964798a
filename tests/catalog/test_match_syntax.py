from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import compile_path

from meterkit.catalog.errors import RefusedError
from meterkit.catalog.match_lines import CONVERTORS, METHODS, parse_match, takes_all
from meterkit.catalog.mcp_lines import parse_mcp
from meterkit.catalog.mcp_match import McpMatch


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


@pytest.mark.parametrize(
    ("written", "path", "match"),
    [
        ("MCP *", "/mcp", McpMatch("*")),
        ("MCP tools/call search*", "/mcp", McpMatch("tools/call", "search*")),
        ("MCP prompts/get a", "/mcp", McpMatch("prompts/get", "a")),
        ("MCP /api/{team}/mcp tools/*", "/api/{team}/mcp", McpMatch("tools/*")),
        ("POST /mcp", None, None),
        ("*", None, None),
    ],
)
def test_lines_of_mcp_name_messages(written: str, path: str | None, match: McpMatch | None) -> None:
    assert parse_mcp(written) == (None if match is None else (path, match))
    if path is not None:
        assert parse_match(written) == ("POST", path)


@pytest.mark.parametrize(
    ("match", "method", "name", "taken"),
    [
        (McpMatch("*"), None, None, True),
        (McpMatch("*"), "ping", None, True),
        (McpMatch("tools/*"), "tools/list", None, True),
        (McpMatch("tools/*"), None, None, False),
        (McpMatch("tools/call"), "Tools/Call", "a", False),
        (McpMatch("tools/call"), "tools/call", "a", True),
        (McpMatch("tools/call", "s*"), "tools/call", "search", True),
        (McpMatch("tools/call", "s*"), "tools/call", "Search", False),
        (McpMatch("tools/call", "s*"), "tools/call", None, False),
        (McpMatch("tools/call", "s*"), "prompts/get", "search", False),
    ],
)
def test_messages_fall_under_lines(
    match: McpMatch, method: str | None, name: str | None, taken: bool
) -> None:
    assert taken == match.takes(method, name)


@pytest.mark.parametrize(
    ("earlier", "later", "taken"),
    [
        ("MCP *", "MCP tools/call", True),
        ("MCP tools/call", "MCP tools/call a", True),
        ("MCP tools/call a*", "MCP tools/call ab", True),
        ("MCP tools/call a", "MCP tools/call", False),
        ("MCP tools/call a", "MCP tools/call b", False),
        ("MCP tools/list", "MCP tools/call", False),
        ("MCP /a *", "MCP /b *", False),
        ("POST /mcp", "MCP tools/call", True),
        ("/{path:path}", "MCP *", True),
        ("GET /mcp", "MCP *", False),
        ("MCP *", "POST /mcp", False),
        ("MCP *", "*", False),
        ("*", "MCP *", True),
        ("GET /a", "GET /a", True),
    ],
)
def test_lines_that_take_all_messages_of_later_ones_are_known(earlier: str, later: str, taken: bool) -> None:
    assert taken == takes_all(earlier, later)
