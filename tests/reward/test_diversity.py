"""Diversity against plain open_clip, at its limits, and beside a reward that is trained on."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from grpo_guard import assets
from grpo_guard.reward.clip import Towers
from grpo_guard.reward.diversity import Diversity
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

CPU = torch.device("cpu")
CONF = Path(__file__).parents[2] / "conf"


def make_prompts(texts):
    """Make a prompt per letter; equal prompts are different objects."""
    return [Prompt(text=text) for text in texts]


def angles(**_):
    """Make a model that embeds a picture as (cos, sin) of its first red value, in turns."""

    def image(x):
        turns = 2 * math.pi * x[:, 0, 0, 0]
        return 3 * torch.stack([turns.cos(), turns.sin()], 1)

    def never(_):
        raise AssertionError("no text is encoded")

    return Towers(
        tokenize=never, text=never, preprocess=torch.nan_to_num, image=image, width=2, gain=1.0
    )


@pytest.fixture
def measure():
    """Score pictures with these first red values as pictures of these texts."""
    score = Diversity(
        clip=functools.partial(angles, model="angles"),
        microbatch=3,
        dtype="float32",
        name="diversity",
    ).load(CPU)
    return lambda turns, texts: score(
        torch.tensor(turns)[:, None, None, None].expand(-1, 3, 2, 2), make_prompts(texts)
    )


def test_against_open_clip(choice, pictures, pil):
    images, texts = pictures(48, 64, 5), "abaab"
    scores = choice("reward", "diversity").load(CPU)(images / 255, make_prompts(texts))
    folder = Path(assets.__file__).parent / "scorer_gold"
    model, preprocess = open_clip.create_model_from_pretrained(
        f"local-dir:{folder}", return_transform=True
    )
    with torch.no_grad():
        embeddings = (
            model.eval()
            .encode_image(torch.stack([preprocess(picture) for picture in pil(images)]))
            .double()
            .numpy()
        )
    for i, text in enumerate(texts):
        others = [embeddings[j] for j in range(5) if texts[j] == text and j != i]
        cosines = [
            embeddings[i] @ other / np.linalg.norm(embeddings[i]) / np.linalg.norm(other)
            for other in others
        ]
        assert scores.total[i].item() == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert list(scores.parts) == ["diversity"]
    assert scores.total.min() > 1e-3


def test_limits(measure):
    """Equal directions give 0, right angles 1, opposite ones 2; other texts do not matter."""
    scores = measure([0.1, 0.1, 0.0, 0.25, 0.0, 0.5], "aabbcc")
    torch.testing.assert_close(scores.total, torch.tensor([0.0, 0, 1, 1, 2, 2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        measure([0.0, 0.0, 0.25], "aaa").total, torch.tensor([0.5, 0.5, 1]), atol=1e-5, rtol=0
    )


def test_the_order_of_the_batch_plays_no_part(measure):
    turns, texts = [0.0, 0.1, 0.7, 0.3, 0.2], "abaab"
    order = [3, 1, 4, 0, 2]
    shuffled = measure([turns[i] for i in order], [texts[i] for i in order])
    torch.testing.assert_close(shuffled.total, measure(turns, texts).total[order])


def test_a_picture_alone_moves_no_mean(measure):
    scores = measure([0.0, 0.25, 0.9, 0.0, 0.5], "aabcc")
    torch.testing.assert_close(scores.total, torch.tensor([1.0, 1, 1.5, 2, 2]), atol=1e-5, rtol=0)
    assert not scores.failed.any()


def test_without_a_pair_there_is_no_score(measure):
    assert measure([0.0, 0.25], "ab").failed.all()


def test_a_broken_picture_fails_alone(measure):
    scores = measure([0.0, math.nan, 0.25, 0.0, 0.5], "aaabb")
    assert scores.failed.tolist() == [False, True, False, False, False]
    torch.testing.assert_close(
        scores.total[[0, 2, 3, 4]], torch.tensor([1.0, 1, 2, 2]), atol=1e-5, rtol=0
    )


def test_looked_at_beside_a_reward_and_not_trained_on(pictures):
    """The overrides are those in the YAML's comment."""
    comment = [
        line[1:]
        for line in (CONF / "reward/diversity.yaml").read_text().splitlines()
        if line.startswith("#")
    ]
    overrides = [
        word.strip("'") for word in " ".join(comment).split() if word[0] in "'+" or "=" in word
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        mixture = instantiate(compose("train", overrides).reward, _convert_="all")
    assert dict(mixture.weights) == {"pickscore": 1, "diversity": 0}
    images, prompts = pictures(64, 64, 3) / 255, make_prompts("aab")
    scores, alone = (
        reward.load(CPU)(images, prompts) for reward in (mixture, mixture.rewards["pickscore"])
    )
    assert torch.equal(scores.total, alone.total)
    assert (scores.parts["diversity"] > 0).all()


def test_a_microbatch_of_nothing(choice):
    with pytest.raises(ConfigError, match="microbatch=0 is not positive"):
        dataclasses.replace(choice("reward", "diversity"), microbatch=0)
