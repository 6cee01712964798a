"""The brand of pages: name, logo and accent colour, readable in both themes; a stylesheet of the app."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from drivers.audited_kit import sqlite_in
from drivers.browser import chromium, faultless, found, needs_chromium
from drivers.llm_apps import listening
from drivers.plans import plans_text
from drivers.shop import START
from drivers.usage_figures import JSON
from meterkit import MeterKit, MeterkitError
from meterkit.catalog import loads
from meterkit.pages import Brand, operator_pages, usage_page
from meterkit.testing import Clock

pytestmark = pytest.mark.anyio

PLANS: Final = plans_text("cards")
OWN: Final = "body { background: rgb(1, 2, 3); }"


async def own_stylesheet(_: Request) -> Response:
    return Response(OWN, media_type="text/css")


async def logo(_: Request) -> Response:
    return Response('<svg xmlns="http://www.w3.org/2000/svg"/>', media_type="image/svg+xml")


def app_of(kit: MeterKit, brand: Brand | None) -> Starlette:
    """An app with both kinds of pages, a logo, and a stylesheet in place of that of its page at /plain."""
    usage = usage_page(kit, customer=lambda _: "acme", origins=["http://app"], brand=brand)
    return Starlette(
        routes=[
            Route("/logo.svg", logo),
            Route("/plain/static/pages.css", own_stylesheet),
            Mount("/plain", app=usage),
            Mount("/usage", app=usage),
            Mount("/operator", app=operator_pages(kit, allowed=lambda _: "ada", brand=brand)),
        ]
    )


@asynccontextmanager
async def branded(store_url: str, brand: Brand | None) -> AsyncGenerator[httpx.AsyncClient]:
    async with MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START)) as kit:
        transport = httpx.ASGITransport(app=app_of(kit, brand))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            yield client


@pytest.mark.parametrize("path", ["/usage/", "/operator/"])
async def test_each_page_shows_the_brand(store_url: str, path: str) -> None:
    async with branded(store_url, Brand("Acme & Co", logo_url="/logo.svg?v=2", accent="#06c")) as client:
        answer = await client.get(path)
        assert '<p class="brand"><img src="/logo.svg?v=2" alt="">Acme &amp; Co</p>' in answer.text
        assert " - Acme &amp; Co</title>" in answer.text
        assert '<link rel="stylesheet" href="static/brand.css">' in answer.text
        assert "img-src 'self';" in answer.headers["content-security-policy"]
        assert "Acme & Co" not in (await client.get(path, headers=JSON)).text
        css = await client.get(f"{path}static/brand.css")
        assert css.headers["content-type"].startswith("text/css")
        assert css.text.startswith(":root { --accent: #0066cc; --on-accent: #ffffff; --enough: #0066cc; }")


async def test_an_embedded_logo_is_allowed_and_no_other_host(store_url: str) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    async with branded(store_url, Brand("Acme", logo_url=url)) as client:
        answer = await client.get("/usage/")
        assert f'<img src="{url}" alt="">' in answer.text
        assert "img-src 'self' data:;" in answer.headers["content-security-policy"]
        assert "//" not in answer.headers["content-security-policy"]
        assert "brand.css" not in answer.text
        assert (await client.get("/usage/static/brand.css")).status_code == 404


async def test_without_a_brand_there_is_none(store_url: str) -> None:
    async with branded(store_url, None) as client:
        assert "brand" not in (await client.get("/usage/")).text


async def test_an_app_replaces_the_stylesheet(store_url: str) -> None:
    async with branded(store_url, None) as client:
        assert (await client.get("/plain/static/pages.css")).text == OWN
        assert (await client.get("/usage/static/pages.css")).text != OWN


@pytest.mark.parametrize(
    ("accent", "light", "dark"),
    [
        ("#0a58ca", "--accent: #0a58ca; --on-accent: #ffffff; --enough: #0a58ca;", "--accent: #6c9bdf"),
        # Bars in these colours would look like warnings.
        (
            "#d9480f",
            "--accent: #c5420e; --on-accent: #ffffff; }",
            "--accent: #e47f57; --on-accent: #000000; }",
        ),
        (
            "#FFE600",
            "--accent: #7a6e00; --on-accent: #ffffff; }",
            "--accent: #ffe600; --on-accent: #000000; }",
        ),
        ("#c2185b", "--accent: #c2185b; --on-accent: #ffffff; }", "--accent: #dc7ba2"),
        ("#fff", "--accent: #6e6e6e; --on-accent: #ffffff; --enough: #6e6e6e;", "--accent: #ffffff"),
    ],
)
async def test_each_theme_has_a_readable_accent(store_url: str, accent: str, light: str, dark: str) -> None:
    async with branded(store_url, Brand("Acme", accent=accent)) as client:
        first, second = (await client.get("/usage/static/brand.css")).text.splitlines()
    assert first.startswith(f":root {{ {light}")
    assert second.startswith(f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": " "}, "found name ' '; a name has 1 to 100 characters"),
        ({"name": "a" * 101}, "a name has 1 to 100 characters"),
        *(
            ({"name": "Acme", "logo_url": url}, "serve the logo by your app and give its path")
            for url in (
                *("logo.svg", "//cdn.example/a", "https://cdn.example/a.png", "data:image/png,a", ""),
                *("data:text/html;base64,YQ==", "/a b", "/a'b", "/a\n"),
            )
        ),
        *(
            ({"name": "Acme", "accent": accent}, f"found accent '{accent}'; it is a colour such as #0a58ca")
            for accent in ("red", "#12345", "#fff;", "#ggg", "")
        ),
    ],
)
def test_a_wrong_brand_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(MeterkitError) as refused:
        Brand(**values)
    assert message in str(refused.value)


@pytest.mark.whole
@needs_chromium
@pytest.mark.dear("a browser")
async def test_a_brand_has_no_fault_in_a_browser(store_url: str, tmp_path: Path) -> None:
    audit_url = sqlite_in(tmp_path)
    cases: tuple[tuple[Literal["light", "dark"], str, int], ...] = (
        ("light", "#ffe600", 1280),
        ("dark", "#1a0033", 360),
    )
    async with (
        MeterKit(loads(PLANS), redis_url=store_url, clock=Clock(START), audit_url=audit_url) as kit,
        chromium() as browser,
    ):
        await kit.record("acme", "tokens", 1_500)
        await kit.record("acme", "words", 85)
        await kit.grants.add("acme", {"pages": 20}, grant_id="gift")
        for theme, accent, width in cases:
            async with listening(app_of(kit, Brand("Acme", logo_url="/logo.svg", accent=accent))) as port:
                url = f"http://127.0.0.1:{port}/"
                async with faultless(browser, f"{url}usage/", theme, width, within=url) as page:
                    assert await found(page, "getComputedStyle(document.querySelector('.act a')).color") in {
                        "rgb(0, 0, 0)",
                        "rgb(255, 255, 255)",
                    }
