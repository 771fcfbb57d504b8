"""Estimates against formulas written out, and what is left out of them."""

import math
import statistics

import numpy as np
import pytest

from grpo_guard.report.evaluation import (
    Evaluation,
    Score,
    described,
    estimate,
    estimates,
    rows,
    told,
)
from grpo_guard.report.measure import Estimate
from grpo_guard.types import Prompt

NAN = math.nan


def asked(texts):
    return [Prompt(text=text) for text in texts]


def judged(scores, prompts):
    files = {model: [f"{model}/{i}" for i in range(len(prompts))] for model in scores[0].values}
    notes = {model: [{}] * len(prompts) for model in files}
    return Evaluation(
        title="",
        about={"seed": 3},
        prompts=prompts,
        files=files,
        strips=[],
        scores=scores,
        notes=notes,
    )


def test_a_picture_of_each_text_gives_the_usual_standard_error():
    values = [0.3, 1.1, -0.4, 2.0, 0.9]
    found = estimate(np.array(values), list("abcde"))
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(5))


def test_pictures_of_one_text_are_no_independent_prompts():
    """Drawing every picture twice more tells nothing new; equal numbers of each text give the error of their means."""
    values = np.array([0.3, 1.1, -0.4, 2.0])
    once, thrice = estimate(values, list("abcd")), estimate(values.repeat(3), list("aaabbbcccddd"))
    assert (thrice.value, thrice.error) == (pytest.approx(once.value), pytest.approx(once.error))
    pairs = np.array([0.0, 1.0, 5.0, 2.0, 3.0, 4.0])
    means = [0.5, 3.5, 3.5]
    assert estimate(pairs, list("aabbcc")).error == pytest.approx(
        statistics.stdev(means) / math.sqrt(3)
    )


@pytest.mark.parametrize("texts", ["a", "aa"])
def test_one_text_has_no_standard_error(texts):
    assert math.isnan(estimate(np.ones(len(texts)), list(texts)).error)


def test_models_are_compared_on_the_pictures_that_both_have_a_score_for():
    base, tuned = np.array([1.0, NAN, 3.0, 4.0, NAN]), np.array([2.0, 9.0, NAN, 8.0, NAN])
    score = Score(reward="r", part="p", accepted=4, values={"base": base, "tuned": tuned})
    found = estimates(score, asked("abcde"))
    assert [found[name].value for name in ("base", "tuned", "difference")] == [2.5, 5, 2.5]
    assert found["difference"].error == pytest.approx(statistics.stdev([1, 4]) / math.sqrt(2))
    known = judged([score], asked("abcde"))
    assert rows(known) == [["r", "p", "2 (2 failed)", "2.5 ± 1.5", "5.0 ± 3.0", "+2.5 ± 1.5"]]
    assert described(known)["scores"][0]["failed"] == 2
    assert [picture["base"]["scores"]["r/p"] for picture in described(known)["pictures"]] == [
        1,
        None,
        3,
        4,
        None,
    ]


def test_a_reward_that_accepts_nothing_stays_in_the_table():
    score = Score(reward="r", part="", accepted=0, values={"pictures": np.full(2, NAN)})
    known = judged([score], asked("ab"))
    assert rows(known) == [["r", "-", "0", "-"]]
    told = described(known)
    assert told["scores"][0]["pictures"] == {"mean": None, "standard_error": None}
    nothing = {"file": "pictures/0", "scores": {}, "notes": {}}
    assert told["pictures"][0] == {"prompt": "a", "tag": "", "pictures": nothing}


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
def test_means_are_told_to_two_digits_of_their_error(value, error, text):
    assert told(Estimate(value=value, error=error), signed=True) == text
    assert told(Estimate(value=value, error=error), signed=False) == text.removeprefix("+")
