"""A misspelt choice or setting is refused in a line that names the nearest one."""

import pytest
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException

from grpo_guard.console import cli
from grpo_guard.console.errors import explain_mistake
from grpo_guard.console.overrides import check_number
from grpo_guard.console.suggestions import known_settings
from grpo_guard.schema import ConfigError

KNOWN = [
    "clipping",
    "clipping/adaptation",
    "clipping.high",
    "optim.lr",
    "reward",
    "reward.microbatch",
    "seed",
]


def missing(choice, *options):
    lines = "".join(f"\n\t{option}" for option in options)
    return MissingConfigException(
        f"In 'train': Could not find '{choice}'\n\nAvailable options in 'x':{lines}\n"
        "Config search path:\n\tprovider=hydra, path=pkg://hydra.conf"
    )


def refused(key):
    return ConfigCompositionException(
        f"Could not override '{key}'.\nTo append to your config use +{key}=1"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            missing("clipping/gard", "dppo", "guard"),
            "clipping=gard is no choice; did you mean guard?",
        ),
        (
            missing("clipping/xyz", "dppo", "guard"),
            "clipping=xyz is no choice; choose from dppo, guard",
        ),
        (
            missing("hydra/sweeper/optuna", "basic"),
            "hydra/sweeper=optuna needs a package; pip install 'grpo_guard[sweep]'",
        ),
        (refused("cliping"), "cliping is no setting; did you mean clipping?"),
        (refused("optim.lrr"), "optim.lrr is no setting; did you mean optim.lr?"),
        (refused("lr"), "lr is no setting; did you mean optim.lr?"),
        (
            refused("clipping/adaptation"),
            "clipping/adaptation is chosen, here or by the experiment, but this clipping has no"
            " adaptation; choose another clipping",
        ),
        (
            refused("qqq"),
            "qqq is no setting; --help lists the choices, --cfg job all settings",
        ),
        (
            HydraException("Error parsing override 'seed'\nmissing EQUAL at '<EOF>'\nSee https"),
            "seed has no value; give seed=...",
        ),
        (
            HydraException(
                "Error loading 'mine.Reward':\nModuleNotFoundError(\"No module named 'mine'\")"
            ),
            "_target_=mine.Reward needs the module mine, which is not installed",
        ),
    ],
)
def test_hydras_refusals_become_one_line(error, line):
    assert explain_mistake(error, lambda: KNOWN) == line


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        # "reward._target_" and "reward.detector" look more alike than they are
        ("reward.strict", "reward has measure, counting, name, detector, colors"),
        ("reward.measures", "did you mean reward.measure?"),
        ("reward.lr", "did you mean optim.lr?"),
        ("reward.detector.strict", "did you mean reward.detector?"),
        (
            "checkpoint._target",
            "checkpoint has every, keep, export_every, best, asynchronous, push_to_hub",
        ),
        ("rewart.strict", "--help lists the choices, --cfg job all settings"),
    ],
)
def test_advice_is_about_what_should_have_had_the_setting(key, advice):
    """Hydra's own keys, such as `_target_`, are never advised."""
    known = known_settings(cli.SETTINGS / "conf", "train", ["reward=geneval"])
    line = explain_mistake(refused(key), lambda: [*known])
    assert line == f"{key} is no setting; {advice}"


def test_no_more_settings_are_named_than_fit_a_line():
    known = [f"backbone.{letter * 9}" for letter in "abcdefghijkl"]
    line = explain_mistake(refused("backbone.strict"), lambda: known)
    assert line.endswith("hhhhhhhhh and 4 more, which --cfg job lists")
    assert "iiiiiiiii" not in line


@pytest.fixture(scope="module")
def known():
    return known_settings(cli.SETTINGS / "conf", "train", ["reward=ocr", "clipping=gard", "seed=1"])


def test_the_known_settings_are_those_of_the_choices(known):
    """Choices that do not exist, and settings, do not count."""
    assert {"clipping", "optim.lr", "experiment", "checkpoint"} <= known.keys()
    assert known["seed"] == 0
    assert "reward.match" in known
    assert "reward.match" not in known_settings(cli.SETTINGS / "conf", "train", [])


@pytest.mark.parametrize("word", ["optim.lr=abc", "sde.level=high", "seed=one"])
def test_a_text_is_no_number(word, known):
    with pytest.raises(ConfigError, match=f"^{word} is no number; give one, such as "):
        check_number(word, lambda: known)


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=1e-4",
        "seed=${oc.env:X}",
        "seed=1,2",
        "backbone.model=abc",
        "clipping=guard",
        "microbatch=auto",
    ],
)
def test_other_values_are_not_refused(word, known):
    check_number(word, lambda: known)
