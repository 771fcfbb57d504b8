"""Means and errors of scores against formulas written out, and the table and JSON of them."""

import math
import statistics

import numpy as np
import pytest

from grpo_guard.report.curves import Estimate
from grpo_guard.report.evaluation import (
    EvaluationReport,
    Score,
    estimate_mean,
    estimate_means,
    format_estimate,
    render_evaluation,
    table_rows,
    to_json,
)
from grpo_guard.types import Prompt

NAN = math.nan


def make_prompts(texts):
    return [Prompt(text=text) for text in texts]


def make_report(scores, prompts):
    files = {model: [f"{model}/{i}" for i in range(len(prompts))] for model in scores[0].values}
    return EvaluationReport(
        title="",
        about={"seed": 3},
        prompts=prompts,
        files=files,
        strips=[],
        scores=scores,
        meanings={"exact": "1 if all is there"},
        notes={model: [{}] * len(prompts) for model in files},
    )


def test_the_page_says_what_the_scores_mean():
    prompts = make_prompts("ab")
    values = {"run": np.array([0.0, 1.0])}
    scores = [
        Score(reward=reward, part=part, accepted=2, values=values)
        for reward, part in (("world", "exact"), ("mine", "mine"), ("ocr", ""))
    ]
    html = render_evaluation(make_report(scores, prompts))
    assert "<li><b>exact</b>: 1 if all is there</li>" in html
    assert "<li><b>mine</b>: its reward does not say what it measures</li>" in html
    assert html.count("<li>") == 2


def test_one_picture_of_each_text_gives_the_usual_standard_error():
    values = [0.3, 1.1, -0.4, 2.0, 0.9]
    mean = estimate_mean(np.array(values), list("abcde"))
    assert mean.value == pytest.approx(statistics.mean(values))
    assert mean.error == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_copies_of_a_picture_do_not_change_the_standard_error():
    values = np.array([0.3, 1.1, -0.4, 2.0])
    once = estimate_mean(values, list("abcd"))
    thrice = estimate_mean(values.repeat(3), list("aaabbbcccddd"))
    assert (thrice.value, thrice.error) == (pytest.approx(once.value), pytest.approx(once.error))


def test_equal_numbers_of_each_text_give_the_error_of_their_means():
    pairs = np.array([0.0, 1.0, 5.0, 2.0, 3.0, 4.0])
    mean = estimate_mean(pairs, list("aabbcc"))
    assert mean.error == pytest.approx(statistics.stdev([0.5, 3.5, 3.5]) / math.sqrt(3))


@pytest.mark.parametrize("texts", ["a", "aa"])
def test_one_text_has_no_standard_error(texts):
    assert math.isnan(estimate_mean(np.ones(len(texts)), list(texts)).error)


def test_models_are_compared_on_the_pictures_that_both_have_a_score_for():
    base, tuned = np.array([1.0, NAN, 3.0, 4.0, NAN]), np.array([2.0, 9.0, NAN, 8.0, NAN])
    score = Score(reward="r", part="p", accepted=4, values={"base": base, "tuned": tuned})
    prompts = make_prompts("abcde")
    means = estimate_means(score, prompts)
    assert [means[name].value for name in ("base", "tuned", "difference")] == [2.5, 5, 2.5]
    assert means["difference"].error == pytest.approx(statistics.stdev([1, 4]) / math.sqrt(2))
    report = make_report([score], prompts)
    row = ["r", "p", "2 (2 failed)", "2.5 ± 1.5", "5.0 ± 3.0", "+2.5 ± 1.5"]
    assert table_rows(report) == [row]
    assert to_json(report)["scores"][0]["failed"] == 2
    scores = [picture["base"]["scores"]["r/p"] for picture in to_json(report)["pictures"]]
    assert scores == [1, None, 3, 4, None]


def test_a_reward_that_accepts_nothing_stays_in_the_table():
    score = Score(reward="r", part="", accepted=0, values={"pictures": np.full(2, NAN)})
    report = make_report([score], make_prompts("ab"))
    assert table_rows(report) == [["r", "-", "0", "-"]]
    nothing = {"file": "pictures/0", "scores": {}, "notes": {}}
    assert to_json(report)["scores"][0]["pictures"] == {"mean": None, "standard_error": None}
    assert to_json(report)["pictures"][0] == {"prompt": "a", "tag": "", "pictures": nothing}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (21.345, 0.0123, "+21.345 ± 0.012"),
        (-0.5, 0.25, "-0.50 ± 0.25"),
        (512.0, 30.0, "+512 ± 30"),
        (1.0, 0.0, "+1"),
        (0.25, NAN, "+0.25"),
        (NAN, NAN, "-"),
    ],
)
def test_means_are_written_to_two_digits_of_their_error(value, error, text):
    estimate = Estimate(value=value, error=error)
    assert format_estimate(estimate, signed=True) == text
    assert format_estimate(estimate, signed=False) == text.removeprefix("+")


def test_an_error_of_rounding_is_not_written():
    assert format_estimate(Estimate(value=0.12, error=6.9e-18), signed=True) == "+0.12"
