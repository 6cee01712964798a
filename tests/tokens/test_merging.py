"""Reports of one call from several sides: what only one of them knows is kept."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final

from meterkit.tokens.call_usage import CallUsage, sum_of
from meterkit.tokens.jobs import batch_line
from meterkit.tokens.merging import each_once, join_reports
from meterkit.tokens.objects import Reports, calls_of, report_of

AT: Final = datetime(2026, 9, 1, tzinfo=UTC)
PLAIN: Final = CallUsage(input_tokens=100, output_tokens=50, model="m", response_id="a", source="reported")
RICH: Final = CallUsage(
    input_tokens=100,
    output_tokens=50,
    details={"input_audio_tokens": 7},
    context=(("service_tier", "flex"),),
    reported_cost_micros=Fraction(3),
    response_id="a",
    source="reported",
)


def test_two_reports_of_a_call_have_all_that_either_knows() -> None:
    expected = replace(RICH, model="m")
    for first, second in ((PLAIN, RICH), (RICH, PLAIN)):
        assert each_once([first, second]) == [expected]
        assert join_reports([first], [second]) == [expected]
        assert join_reports([replace(first, response_id=None)], [second]) == [expected]


def test_of_what_both_know_the_better_report_counts() -> None:
    better = replace(
        RICH, output_tokens=60, details={"input_audio_tokens": 9}, reported_cost_micros=Fraction(4)
    )
    worse = replace(
        RICH,
        details={"input_audio_tokens": 7, "web_searches": 1},
        context=(("service_tier", "priority"), ("speed", "fast")),
    )
    assert each_once([worse, better]) == [
        replace(
            better,
            details={"input_audio_tokens": 9, "web_searches": 1},
            context=(("service_tier", "flex"), ("speed", "fast")),
        )
    ]
    estimated = replace(RICH, source="estimated", details={"input_image_tokens": 5})
    (joined,) = each_once([estimated, PLAIN])
    # Figures of an estimate are not mixed with reported ones.
    assert (joined.details, joined.context, joined.source) == ({}, RICH.context, "reported")


def test_an_amount_comes_with_the_provider_that_reports_it() -> None:
    """F-210. An app's framework may keep the tokens of a gateway's answer, and not what it charges."""
    plain, paid = replace(PLAIN, provider="openai"), replace(RICH, provider="openrouter")
    for first, second in ((plain, paid), (paid, plain)):
        (joined,) = join_reports([first], [second])
        assert (joined.provider, joined.reported_cost_micros) == ("openrouter", Fraction(3))


def test_a_report_of_the_input_without_its_cached_part_is_of_the_same_call() -> None:
    """An app may put Anthropic's `input_tokens`, which are without the cache, into an answer of its own."""
    cached = replace(PLAIN, input_tokens=1_000, cached_input_tokens=600, cache_write_tokens=300)
    for own in (replace(PLAIN, response_id="b"), replace(PLAIN, response_id=None)):
        assert len(join_reports([cached], [own], renamed=True)) == 1
        assert len(join_reports([own], [cached], renamed=True)) == 1
    for other in (replace(PLAIN, input_tokens=400), replace(PLAIN, output_tokens=51)):
        assert len(join_reports([cached], [replace(other, response_id="b")], renamed=True)) == 2


def test_reports_with_other_details_are_of_different_calls() -> None:
    one = replace(RICH, response_id=None)
    other = replace(one, details={"input_audio_tokens": 8})
    assert join_reports([one], [other]) == [one, other]
    assert join_reports([one], [replace(one, details={"web_searches": 1})]) == [
        replace(one, details={"input_audio_tokens": 7, "web_searches": 1})
    ]


def test_a_call_inside_another_joins_by_its_own_id() -> None:
    image = CallUsage(
        input_tokens=5, output_tokens=9, model="gpt-image-1", response_id="a/image_gen", source="reported"
    )
    seen = replace(image, details={"output_image_tokens": 9})
    assert join_reports([PLAIN, image], [RICH, seen]) == [replace(RICH, model="m"), seen]


def test_a_sum_is_no_call_of_its_own_though_some_of_its_calls_were_seen() -> None:
    one, two = PLAIN, replace(PLAIN, input_tokens=30, response_id="b", details={"input_audio_tokens": 2})
    total = replace(sum_of([one, two]), response_id=None)
    assert total.notes == ("summed",)
    assert join_reports([one, two], [total]) == [one, two]
    assert join_reports([total], [one, two]) == [one, two]
    assert join_reports([one, two], [one, total]) == [two, one]
    other = replace(total, details={"input_audio_tokens": 3})
    assert join_reports([one, two], [other]) == [one, two, other]


def test_a_run_and_its_counter_are_counted_once() -> None:
    def usage(entered: int, left: int, requests: int = 1) -> dict[str, Any]:
        return {
            "input_tokens": entered,
            "output_tokens": left,
            "total_tokens": entered + left,
            "requests": requests,
        }

    run: dict[str, Any] = {
        "raw_responses": [{"output": [], "usage": usage(10, 6), "response_id": None} for _ in range(2)]
    }
    for objects in ((run, usage(20, 12, 2)), (usage(20, 12, 2), run)):
        reports = Reports()
        assert all(reports.take(report_of(obj)) for obj in objects)
        assert [call.input_tokens for call in reports.usages()] == [10, 10]


def test_a_batch_with_one_usage_is_a_sum_and_each_line_a_call() -> None:
    """F-214"""
    usage = {"input_tokens": 300_000, "output_tokens": 2000, "total_tokens": 302_000}
    batch = {"id": "batch_1", "object": "batch", "model": "gpt-5.4", "status": "completed", "usage": usage}
    (call,) = calls_of(batch)
    assert "summed" in call.notes
    (alone,) = calls_of({**batch, "object": "response"})
    priced, dearer = call.cost(AT), alone.cost(AT)
    # 2.50 and 15 dollars a million up to 272,000 tokens of input, 5.00 and 22.50 beyond.
    assert (priced, dearer) == (300_000 * Fraction(5, 2) + 2000 * 15, 300_000 * 5 + 2000 * Fraction(45, 2))
    half = [replace(alone, input_tokens=150_000, output_tokens=1000, response_id=name) for name in "ab"]
    assert sum_of(half).cost(AT) == sum(one.cost(AT) or 0 for one in half) == priced


def test_a_response_inside_a_batch_job_of_google_is_a_line() -> None:
    response = {"usage_metadata": {"prompt_token_count": 3, "total_token_count": 7}, "model_version": "g"}
    line = batch_line({"metadata": {"key": "a"}, "response": response, "error": None})
    assert line is not None
    assert (line.name, line.answer) == ("a", response)
