"""The first pages that a user follows, driven to the refusal that their plans file sells (F-200)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from drivers.command_line import Shell
from test_readme import ROOT, blocks

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("page", "included"), [("README.md", 1_000), ("docs/index.md", 1_000), ("docs/quickstart.md", 10_000)]
)
async def test_the_request_after_the_last_included_word_is_refused(
    page: str, included: int, tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plans,) = (text for text in blocks(ROOT / page, "yaml") if text.startswith("schema: 1"))
    (app,) = (text for text in blocks(ROOT / page, "python") if "add_middleware" in text)
    (tmp_path / "plans.yaml").write_text(plans)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METERKIT_REDIS_URL", store_url)
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(app, page, "exec", dont_inherit=True), names)  # noqa: S102 - It is our own documentation.
    transport = httpx.ASGITransport(app=names["app"])
    headers = {"x-customer-id": "ada"}
    async with (
        names["kit"],
        httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as ada,
    ):
        for words in (included - 1, 1):
            answer = await ada.post("/translate", params={"text": " ".join("a" * words)})
            assert answer.status_code == 200
        policies = answer.headers["ratelimit-policy"]
        assert all(f"ratelimit-policy: {policies}\n" in text for text in blocks(ROOT / page, "http"))
        refused = await ada.post("/translate", params={"text": "hello"})
        assert refused.status_code == 429
        assert refused.json()["violated-policies"] == ["words-period"]


def test_check_names_what_the_first_page_lacks_without_records(tmp_path: Path) -> None:
    (plans,) = (text for text in blocks(ROOT / "README.md", "yaml") if text.startswith("schema: 1"))
    (tmp_path / "plans.yaml").write_text(plans.replace(", records: [words]", ""))
    done = Shell(tmp_path).run("check")
    assert done.code == 0
    assert "note: plans.yaml:12:42 plans.free.meters.words: no route asks for words" in done.out
    assert "write `records: [words]` on the routes" in done.out
