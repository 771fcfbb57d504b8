"""Predicted bytes against iterations that are run, and the sizes of published networks."""

import dataclasses

import pytest
import torch

from grpo_guard.command.benches.memory import (
    CARDS,
    GIB,
    RECIPES,
    SMALL_RUNS,
    TINY,
    compose_experiment,
    measure_run,
    remove_golds,
)
from grpo_guard.console import cli
from grpo_guard.cost import memory
from grpo_guard.cost.ledger import Ledger, count_bytes
from grpo_guard.cost.memory import predict_memory
from grpo_guard.cost.random_weights import META, Untrained, read_configs
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare, snapshot
from grpo_guard.train import iterate


@pytest.mark.parametrize(
    "name",
    ["sd3_tiny, guidance, kl", "sd3_tiny, accumulation, ema", "sd3_tiny, LoRA, derivative"],
)
def test_a_run_takes_what_was_predicted(name):
    exp = remove_golds(compose_experiment(SMALL_RUNS[name]))
    assert predict_memory(exp).peak == pytest.approx(measure_run(exp), rel=0.05)


@pytest.mark.parametrize("name", ["sd3_tiny, LoRA", "sd3_tiny, accumulation, ema"])
def test_a_state_takes_what_was_predicted(name):
    """After an iteration, since moments appear with the first step; tables of places add a bit."""
    exp = compose_experiment([*SMALL_RUNS[name], "iterations=1"])
    session, _ = iterate(prepare(remove_golds(exp)), 0)
    written = count_bytes(flatten_tensors(snapshot(session).tensors))
    assert predict_memory(exp).state == pytest.approx(written, rel=0.02)


def flatten_tensors(tree):
    """Return the tensors in nested dictionaries and lists."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [tensor for child in children for tensor in flatten_tensors(child)]


def test_a_ledger_counts_living_tensors():
    outside = torch.zeros(10)
    with Ledger([outside]) as ledger:
        inside = outside + 1
        view = inside[2:]
        del inside
        assert (ledger.live, ledger.peak) == (80, 80)
        del view
        assert (ledger.live, ledger.peak) == (40, 80)
        ledger.reset_peak()
        assert ledger.peak == 40


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd3_medium", 2_243_171_520), ("sd3_large", 8_056_627_520), ("flux_dev", 11_901_408_320)],
)
def test_published_sizes(name, count, choice):
    transformer = Untrained(recipe=choice("backbone", name)).load(META).pipe.transformer
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in frozen) == count
    assert {p.dtype for p in transformer.parameters() if p.requires_grad} == {torch.float32}
    assert count_bytes(frozen) == 2 * count


def test_half_precision_narrows_activations():
    exp = compose_experiment([*TINY, "backbone=sd3_tiny_lora", "backbone.dtype=bfloat16"])
    wide = dataclasses.replace(exp, backbone=dataclasses.replace(exp.backbone, dtype="float32"))
    narrow, full = (predict_memory(e).phases["update"]["activations"] for e in (exp, wide))
    assert 0.5 * full < narrow < 0.95 * full


def test_a_strategy_divides_its_shares(monkeypatch):
    """Activations take longest to predict, and do not matter here."""
    monkeypatch.setattr(memory, "measure_peak", lambda *_: 0)

    def predict(strategy):
        eight = [f"strategy={strategy}", "strategy.processes=8", "data.prompts=8", "eval.prompts=8"]
        prediction = predict_memory(compose_experiment([*TINY, *eight]))
        gradients = prediction.phases["step"]["gradients"]
        return prediction.held["policy"], prediction.held["moments"], gradients

    policy, moments, gradients = predict("ddp")
    assert predict("zero1") == (policy, moments // 8, gradients)
    assert predict("zero2") == (policy, moments // 8, gradients // 8)
    assert predict("fsdp")[1:] == predict("zero3")[1:] == (moments // 8, gradients // 8)
    assert policy // 8 < predict("fsdp")[0] < policy


@pytest.mark.parametrize("checkpointing", [True, False])
def test_weights_that_fsdp_gathers_are_not_copied_by_autocast(checkpointing):
    """Trained weights are float32. ZeRO-3 gathers them so, and autocast keeps a copy of each."""
    settings = [
        *TINY, "backbone.dtype=bfloat16", "strategy.processes=8", "data.prompts=8", "microbatch=1",
        f"backbone.gradient_checkpointing={checkpointing}", "eval.prompts=8",
    ]  # fmt: skip
    runs = {
        name: compose_experiment([*settings, f"strategy={name}"])
        for name in ("zero3", "fsdp", "hsdp")
    }
    size = Untrained(recipe=runs["fsdp"].backbone).load(META).pipe.transformer.num_parameters()
    zero3, fsdp, hsdp = (predict_memory(exp).phases for exp in runs.values())
    for phase in ("rollout", "update"):
        less = zero3[phase]["activations"] - fsdp[phase]["activations"]
        assert 1.5 * size < less < 2.6 * size
        assert hsdp[phase]["activations"] == fsdp[phase]["activations"]


def test_an_evaluation_of_smaller_images_needs_less(monkeypatch):
    monkeypatch.setattr(memory, "measure_peak", lambda *_: 0)
    own = predict_memory(compose_experiment(TINY))
    smaller = predict_memory(compose_experiment([*TINY, "eval.resolution=32"]))
    latents = [prediction.phases["evaluation"]["latents"] for prediction in (own, smaller)]
    assert latents[0] == 4 * latents[1]
    assert own.phases["rollout"] == smaller.phases["rollout"]
    # The reference is a copy of the whole transformer here; a KL penalty and evaluations share it.
    penalized = [*TINY, "eval.kl=true", "kl=x_flow_grpo", "eval.resolution=32"]
    held = predict_memory(compose_experiment(penalized)).held
    assert held["reference"] == held["policy"]


def test_an_unknown_checkpoint_is_refused():
    message = r"backbone.model=some/other has no configuration in this package; give a folder"
    with pytest.raises(ConfigError, match=message):
        read_configs("some/other")


def test_the_preset_of_24_gb_fits_and_needs_its_settings(monkeypatch):
    """The same run does not fit if the gold rewards are kept.

    Activations are the same in both cases, so they are measured only once.
    """
    peaks = []
    measure_peak = memory.measure_peak

    def measure_and_record(*args):
        peaks.append(measure_peak(*args))
        return peaks[-1]

    exp = compose_experiment(["experiment=sd35_pickscore", "preset=gpu_24gb"])
    monkeypatch.setattr(memory, "measure_peak", measure_and_record)
    assert predict_memory(exp).peak < 0.9 * 24 * GIB
    recorded = iter(peaks)
    monkeypatch.setattr(memory, "measure_peak", lambda *_: next(recorded))
    resident = dataclasses.replace(exp, eval=dataclasses.replace(exp.eval, keep_gold=True))
    assert predict_memory(resident).peak > 0.9 * 24 * GIB
    assert not [*recorded]


def test_the_command_that_trains_all_of_flux_fits_eight_cards_of_80_gb(monkeypatch):
    """Activations take longest to predict; they are some 6 GiB."""
    header = (cli.ROOT / "conf/published/flux_dance_vanilla.yaml").read_text(encoding="utf-8")
    command = header.splitlines()[1]
    assert command.startswith("# python scripts/train.py strategy=fsdp strategy.processes=8 ")
    monkeypatch.setattr(memory, "measure_peak", lambda *_: 0)
    exp = compose_experiment(command.split()[3:])
    assert predict_memory(exp).peak < 0.9 * (80 - 8) * GIB


@pytest.mark.parametrize("recipe", RECIPES.values())
@pytest.mark.parametrize(
    "preset", [path.stem for path in (cli.ROOT / "conf/preset").glob("*.yaml")]
)
def test_every_preset_goes_with_every_experiment(preset, recipe):
    _, strategy = CARDS.get(preset, (0, []))
    compose_experiment([f"experiment={recipe}", f"preset={preset}", *strategy])
