"""A model card describes the weights beside it, and its code draws what the run draws."""

import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from resuming import run
from sampling import draw_by_card, perturb, sample
from toy import experiment, read_metrics

from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.eval.heldout import HeldOut
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.lifecycle.model_card import make_card
from grpo_guard.run_folder import OpenRun

BACKBONE = {
    "model": "sd3_tiny",
    "resolution": 64,
    "guidance": 2.0,
    "t5_tokens": 0,
    "microbatch": 8,
    "dtype": "float32",
    "vae_dtype": "float32",
    "text_dtype": "float32",
    "gradient_checkpointing": False,
    "prompt_cache": None,
}
LORA = {"rank": 4, "alpha": 8, "targets": ["attn.to_q"]}
START = {"eval/proxy/pickscore": 20.5, "eval/kl": 0.0}
SCORES = {"eval/proxy/pickscore": 21.25, "eval/gold/clean": 10.41}
NOT_EVALUATED = "These weights were not evaluated."
BEST = "eval/proxy/grey"
EVERY = Checkpoints(every=1, keep=2, export_every=1, best=BEST, asynchronous=True)


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_code_on_a_card_draws_what_the_run_draws(lora, tmp_path, monkeypatch):
    model = SD3(**BACKBONE, lora=Lora(**lora) if lora else None).load(torch.device("cpu"))
    perturb(model)
    backbone = BACKBONE | {"lora": lora, "_target_": "grpo_guard.backbone.sd3.SD3"}
    latents = draw_by_card(model, backbone, tmp_path, monkeypatch)
    assert (latents - sample(model, ["a red circle"], 4)[0]).abs().max() < 1e-4


def test_a_card_holds_recipe_measurements_and_configuration():
    config = {"backbone": {"model": "org/name", "lora": None}, "steps": 10, "optim": {"lr": 3e-4}}
    body = make_card(config, 2, SCORES, START).text
    assert "| optim.lr | 0.0003 |" in body
    assert "| held-out prompts | iteration 0 | iteration 2 |" in body
    assert "| eval/proxy/pickscore | 20.5 | 21.25 |" in body
    assert "| eval/gold/clean | - | 10.41 |" in body
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.S)[1]) == config
    assert "clipping" not in body


def test_the_code_draws_at_the_size_of_the_evaluations_and_half_precision_on_a_gpu():
    """`draw_by_card` runs the code in float32 on the CPU."""
    backbone = BACKBONE | {"dtype": "float16", "lora": LORA}
    evaluation = {"steps": 28, "resolution": 128}
    text = make_card({"backbone": backbone, "eval": evaluation}, 2, {}, {}).text
    assert 'pipe.load_lora_weights("lora")\npipe.to("cuda")\n' in text
    assert 'pipe("a red circle", height=128, width=128, num_inference_steps=28)' in text


def test_weights_without_an_evaluation_have_no_numbers():
    card = make_card({}, 2, {}, START)
    assert NOT_EVALUATED in card.text
    assert "eval/" not in str(card)


def test_the_hub_reads_base_model_licence_and_scores():
    model = "black-forest-labs/FLUX.1-dev"
    text = str(make_card({"backbone": {"model": model, "lora": LORA}}, 2, SCORES, START))
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == (model, "adapter")
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert {"text-to-image", "lora", "grpo"} <= set(data.tags)
    assert (data.license, data.license_name) == ("other", "flux-1-dev-non-commercial-license")
    assert data.license_link == f"https://huggingface.co/{model}/blob/main/LICENSE.md"
    assert scores_of(ModelCard(text)) == SCORES


@pytest.mark.parametrize("model", ["sd3_tiny", "./a/b", "/models/name"])
def test_a_base_model_that_is_not_on_the_hub_is_not_named_in_the_header(model):
    data = make_card({"backbone": {"model": model}}, 2, {}, {}).data
    assert data.base_model is None
    assert data.license == ("apache-2.0" if model == "sd3_tiny" else None)


def scores_of(card):
    """Return the scores in the header of a card."""
    return {result.metric_type: result.metric_value for result in card.data.eval_results or []}


def read_card(folder, name):
    return ModelCard.load(folder / "checkpoints" / name / "README.md")


def read_evaluations(folder):
    """Return the evaluations of a run by iteration."""
    evaluations = {
        row["iteration"]: {key: value for key, value in row.items() if key.startswith("eval/")}
        for row in read_metrics(folder)
    }
    return {iteration: scores for iteration, scores in evaluations.items() if scores}


def check_cards(folder, iterations):
    """Check that every card has the evaluation of its weights beside that of the start."""
    evaluations = read_evaluations(folder)
    best = max(evaluations, key=lambda iteration: evaluations[iteration][BEST])
    for name, iteration in {"best": best, **{f"{i:06d}": i for i in iterations}}.items():
        card = read_card(folder, name)
        assert f"\n{iteration} iterations of" in card.text
        assert scores_of(card) == evaluations.get(iteration, {})
        assert (NOT_EVALUATED in card.text) == (iteration not in evaluations)
        if iteration in evaluations:
            ends = [f"{evaluations[i][BEST]:.4g}" for i in sorted({0, iteration})]
            assert f"| {BEST} | {' | '.join(ends)} |" in card.text


def evaluate_every(iterations):
    settings = vars(experiment().eval) | {"every": iterations}
    return HeldOut(**settings)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_card_has_the_evaluation_of_its_own_weights(every, tmp_path):
    run(tmp_path, iterations=5, checkpoint=EVERY, eval=evaluate_every(every))
    assert list(read_evaluations(tmp_path)) == sorted({*range(0, 5, every), 5})
    check_cards(tmp_path, range(1, 6))


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and nothing is cleaned up."""


@pytest.mark.parametrize(("killed_at", "resumed_for"), [(2, 5), (5, 5), (5, 6)])
def test_a_run_killed_before_an_evaluation_ends_with_the_right_cards(
    killed_at, resumed_for, tmp_path, monkeypatch
):
    """Checkpoint and state are written by then, so the process that resumes mends the card."""
    evaluate = OpenRun.evaluate

    def die(self, iteration):
        if iteration == killed_at:
            raise Killed
        return evaluate(self, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(OpenRun, "evaluate", die)
        with pytest.raises(Killed):
            run(tmp_path, iterations=5, checkpoint=EVERY, eval=evaluate_every(1))
    assert NOT_EVALUATED in read_card(tmp_path, f"{killed_at:06d}").text
    run(tmp_path, iterations=resumed_for, checkpoint=EVERY, eval=evaluate_every(1))
    check_cards(tmp_path, range(1, resumed_for + 1))


def test_a_checkpoint_of_an_earlier_run_keeps_its_card(tmp_path):
    run(tmp_path, iterations=3, checkpoint=EVERY, eval=evaluate_every(1))
    before = str(read_card(tmp_path, "000002"))
    rarely = Checkpoints(every=9, keep=2, export_every=9, best=None, asynchronous=True)
    changes = {"checkpoint": rarely, "eval": evaluate_every(1), "resume": "never"}
    run(tmp_path, iterations=4, seed=5, **changes)
    assert str(read_card(tmp_path, "000002")) == before
