"""The aesthetic predictor against the published inference, with small random weights."""

import functools
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from grpo_guard.reward.aesthetic import PREDICTOR_FILE, build_regression
from grpo_guard.types import Prompt

CPU = torch.device("cpu")


class MLP(nn.Module):
    """The published layers under their published names."""

    def __init__(self):
        super().__init__()
        drops = [nn.Dropout(share) for share in (0.2, 0.2, 0.1)]
        a, b, c, d, e = (
            nn.Linear(*pair) for pair in ((768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))
        )
        self.layers = nn.Sequential(a, drops[0], b, drops[1], c, drops[2], d, e)


@pytest.fixture(scope="module")
def mlp():
    torch.manual_seed(3)
    return MLP().eval()


@pytest.fixture(scope="module")
def reward(choice, tiny, tiny_state, mlp, tmp_path_factory):
    path = tmp_path_factory.mktemp("aesthetic")
    save_file(dict(tiny_state), path / "open_clip_model.safetensors")
    torch.save(mlp.state_dict(), path / "sac+logos+ava1-l14-linearMSE.pth")
    whole = choice("reward", "aesthetic")
    clip = functools.partial(whole.clip, architecture=tiny, model=str(path))
    return replace(whole, model=str(path), clip=clip, microbatch=2)


@pytest.fixture(scope="module")
def score(reward):
    return reward.load(CPU)


@torch.no_grad()
def expected(reward, mlp, images):
    """Compute the published inference: normalize the CLIP embedding in numpy, apply the layers."""
    file = f"{reward.model}/open_clip_model.safetensors"
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", file)
    rows = np.stack(
        [model.eval().encode_image(preprocess(image)[None])[0].numpy() for image in images]
    )
    return mlp.layers(torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)))[:, 0]


@pytest.mark.parametrize("size", [(32, 32), (80, 48)])
def test_scores_are_the_published_ones(reward, score, mlp, pictures, pil, size):
    images = pictures(*size, 5)
    rewards = score(images / 255, [Prompt(text=str(i)) for i in range(5)])
    wanted = expected(reward, mlp, pil(images))
    assert wanted.std() > 1e-4
    assert list(rewards.parts) == ["aesthetic"]
    torch.testing.assert_close(rewards.total, wanted, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_head_is_affine():
    judge, x = (
        build_regression(768),
        torch.randn(64, 768, generator=torch.Generator().manual_seed(5)),
    )
    torch.testing.assert_close(
        judge(x) + judge(-x), 2 * judge(torch.zeros(64, 768)), atol=1e-6, rtol=0
    )
    assert judge(x).std() > 1e-2


def test_the_prompt_and_the_microbatch_change_nothing(reward, score, pictures):
    images = pictures(40, 40, 5) / 255
    one, other = ([Prompt(text=text)] * 5 for text in ("a cat", "fog"))
    assert torch.equal(score(images, one).total, score(images, other).total)
    whole = replace(reward, microbatch=9).load(CPU)(images, one).total
    torch.testing.assert_close(whole, score(images, one).total, atol=1e-6, rtol=0)


def test_a_half_precision_encoder_and_a_broken_image(reward, score, pictures):
    images, prompts = pictures(40, 40, 3) / 255, [Prompt(text="")] * 3
    images[2, 0, 0, 0] = torch.inf
    exact, half = (
        score(images, prompts),
        replace(reward, dtype="bfloat16").load(CPU)(images, prompts),
    )
    assert half.failed.tolist() == [False, False, True]
    assert half.total.dtype == torch.float32
    assert 0 < (half.total - exact.total)[:2].abs().max() < 1e-3


def test_a_bad_file_is_refused(reward, mlp, check_refusal, damaged):
    check_refusal(
        replace(reward, model=str(damaged(PREDICTOR_FILE, mlp.state_dict()))),
        "cannot be loaded",
        PREDICTOR_FILE,
    )


def test_a_missing_encoder_is_named(reward, check_refusal, tmp_path):
    clip = functools.partial(reward.clip, model=str(tmp_path))
    check_refusal(replace(reward, clip=clip), f"{tmp_path} holds no open_clip_model.safetensors")


def test_embeddings_of_another_width_are_refused(reward, check_refusal):
    def narrow(**_):
        return replace(reward.clip(device=CPU, dtype=torch.float32), width=512)

    check_refusal(
        replace(reward, clip=functools.partial(narrow, model="narrow")),
        "clip has embeddings of 512, not 768",
    )
