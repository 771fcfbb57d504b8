"""What scores mean: the classes of rewards say it, for every score that they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from synthetic_runs import make_run

from grpo_guard.console import cli
from grpo_guard.report.glossary import UNKNOWN, explain_scores, explain_statistics, read_meanings
from grpo_guard.reward.checker import WorldChecker
from grpo_guard.reward.statistics import ImageStatistics
from grpo_guard.types import Prompt

CHOICES = sorted(path.stem for path in (cli.ROOT / "conf/reward").glob("*.yaml"))


def compose_reward(choice: str) -> Any:
    """Return the settings of a choice as a run folder holds them."""
    with initialize_config_dir(str(cli.ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(compose(overrides=[f"+reward={choice}"]), resolve=True)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_reward_says_what_its_scores_mean(choice: str) -> None:
    config = compose_reward(choice)
    meanings = read_meanings(config)
    assert meanings
    assert not any("{" in text for pair in meanings.items() for text in pair)
    if "name" in config["reward"]:
        assert config["reward"]["name"] in meanings


@pytest.mark.parametrize("reward", [WorldChecker(), ImageStatistics(period=8)])
def test_the_meanings_are_those_of_the_scores(reward: Any) -> None:
    scores = reward.load(torch.device("cpu"))(torch.rand(1, 3, 64, 64), [Prompt(text="a")])
    assert scores.parts.keys() == reward.meanings.keys()


def test_a_reward_of_a_user_is_read_from_its_file_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'raise SystemExit\n\n\nclass Mine:\n    meanings = {"{name}": "how bright it is"}\n'
    (tmp_path / "reward_of_a_user.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    config = {"reward": {"_target_": "reward_of_a_user.Mine", "name": "bright"}}
    assert read_meanings(config) == {"bright": "how bright it is"}


@pytest.mark.parametrize(
    "target", ["", "os", "nowhere.Mine", "..Mine", "grpo_guard.reward.clip.Nothing", "sys.Mine", 3]
)
def test_what_is_not_there_has_no_meaning(target: Any) -> None:
    assert read_meanings({"reward": {"_target_": target}, "eval": None}) == {}


def test_runs_whose_scorers_differ_have_both_meanings() -> None:
    reward = {"_target_": "grpo_guard.reward.clip.ClipReward", "name": "p"}
    golds = {"gold": {"_target_": "grpo_guard.reward.statistics.ImageStatistics", "period": 8}}
    levels = (0.8,) * 8
    runs = [
        make_run(
            golds={"facts": levels, "saturation": levels},
            reward=reward | {"model": model},
            eval={"prompts": 192, "gold": golds},
        )
        for model in ("scorer_proxy", "scorer_terse", "scorer_proxy")
    ]
    facts, proxy = explain_scores(runs)
    assert (facts.name, facts.role, facts.text) == ("facts", "gold", UNKNOWN)
    assert (proxy.name, proxy.role) == ("p", "proxy")
    assert [proxy.text.count(word) for word in ("scorer_proxy", "scorer_terse", " or ")] == [
        1,
        1,
        1,
    ]
    [saturation] = explain_statistics(runs)
    assert saturation.text == ImageStatistics.meanings["saturation"]
