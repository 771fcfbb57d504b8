"""An evaluation at a resolution of its own: the same policy, other latents."""

import dataclasses

import pytest
import torch
from composing import compose_run
from sampling import perturb, save

from grpo_guard.console import cli, drawing
from grpo_guard.console.options import DrawingSettings
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare

SMALL = (
    "eval.prompts=2",
    "eval.pictures=2",
    "eval.steps=2",
    "~eval.gold.world",
    "logger=none",
    "output=unused",
)


def prepare_run(*overrides):
    return prepare(cli.build(compose_run("backbone=sd3_tiny_lora", *SMALL, *overrides)))


def test_images_are_of_the_resolution_that_the_evaluation_has():
    session = prepare_run("eval.resolution=32")
    before = session.evaluate(0)
    assert before.pictures.images.shape == (2, 3, 32, 32)
    assert before.metrics["eval/kl"].value == 0
    assert session.model.shape[-1] == 8
    perturb(session.model)
    after = session.evaluate(0)
    assert after.metrics["eval/kl"].value > 0
    assert not torch.equal(after.pictures.images, before.pictures.images)


def test_the_reference_of_a_whole_model_is_one_copy_for_all_resolutions():
    recipe = dataclasses.replace(prepare_run().exp.backbone, lora=None)
    model = recipe.load(torch.device("cpu"))
    smaller = model.at(32)
    x, t = torch.randn(1, *smaller.shape), torch.tensor([0.5])
    condition = model.encode(["a red circle"])
    with torch.no_grad():
        before = smaller.policy(x, t, condition)
        reference = smaller.reference()
        assert model.reference().transformer is reference.transformer
        for parameter in model.policy.parameters():
            parameter += 0.01
        assert torch.equal(reference(x, t, condition), before)
        assert not torch.equal(smaller.policy(x, t, condition), before)


def test_the_resolution_of_training_is_the_same_evaluation():
    own, named = (prepare_run(*words) for words in ((), ("eval.resolution=64",)))
    assert torch.equal(own.evaluate(0).pictures.images, named.evaluate(0).pictures.images)


@pytest.mark.parametrize(
    ("resolution", "line"),
    [
        (36, "eval.resolution=36 is no multiple of 8; give one that is"),
        (128, "eval.resolution=128 does not fit sd3_tiny; give a multiple of 8, at most 64"),
    ],
)
def test_a_resolution_that_does_not_fit_is_refused_in_one_line(resolution, line):
    with pytest.raises(ConfigError) as refused:
        prepare_run(f"eval.resolution={resolution}")
    assert str(refused.value) == line


def test_a_run_is_drawn_at_the_resolution_of_its_evaluations(tmp_path):
    exp = prepare_run("eval.resolution=32").exp
    model = exp.backbone.load(torch.device("cpu"))
    perturb(model)
    save(model, tmp_path)

    def draw(**options):
        settings = DrawingSettings(steps=2, **options)
        return drawing.draw_base_and_tuned(
            exp, tmp_path, ["a red circle"], torch.device("cpu"), settings
        )

    small, large = draw(), draw(resolution=64)
    assert small["base"].shape == small["tuned"].shape == (1, 3, 32, 32)
    assert large["base"].shape == large["tuned"].shape == (1, 3, 64, 64)
    assert not torch.equal(small["base"], small["tuned"])
    with pytest.raises(
        ConfigError, match=r"^--resolution=36 is no multiple of 8; give one that is"
    ):
        draw(resolution=36)


def test_a_resolution_must_be_positive():
    settings = prepare_run().exp.eval
    with pytest.raises(ConfigError, match="resolution=0 is not positive"):
        dataclasses.replace(settings, resolution=0)
