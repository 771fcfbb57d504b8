"""Predicted bytes against iterations that are run, and what is known of published networks."""

import dataclasses

import pytest
import torch

from benches import memory as footprint
from grpo_guard.cost import memory
from grpo_guard.cost.memory import Ledger, predict, weight
from grpo_guard.cost.random_weights import Untrained, configurations
from grpo_guard.types import ConfigError
from lib import cli


@pytest.mark.parametrize("name", ["sd3_tiny, guidance, kl", "sd3_tiny, accumulation, ema"])
def test_a_run_takes_what_was_predicted(name):
    exp = footprint.unjudged(footprint.composed(footprint.SMALL[name]))
    assert predict(exp).peak == pytest.approx(footprint.measured(exp), rel=0.05)


def test_scorers_are_counted_with_all_their_parts(choice):
    """In gigabytes of float32 weights."""
    tower, judge = 4 * 0.428, choice("reward", "geneval_coco")
    expected = {
        "clipscore": tower,
        "aesthetic": tower + 4 * 0.000928,
        "geneval_coco": tower + 4 * 0.069,
        "ocr": 0,
    }
    found = {name: memory._scorer(choice("reward", name)) / 1e9 for name in expected}
    assert found == pytest.approx(expected, rel=1e-3)
    mixed = dataclasses.replace(
        choice("reward", "mixture"), rewards={"a": judge, "b": judge}, weights={"a": 1, "b": 1}
    )
    assert memory._scorer(mixed) == 2 * memory._scorer(judge)
    assert memory._scorer(
        dataclasses.replace(judge, colors=dataclasses.replace(judge.colors, dtype="bfloat16"))
    ) == (4 * 69_000_000 + 2 * 428_000_000)
    assert memory._scorer(dataclasses.replace(choice("reward", "remote"), served=judge)) == 0


def test_a_ledger_counts_what_is_alive():
    given = torch.zeros(10)
    with Ledger([given]) as ledger:
        made = given + 1
        view = made[2:]
        del made
        assert (ledger.live, ledger.peak) == (80, 80)
        del view
        assert (ledger.live, ledger.peak) == (40, 80)
        ledger.begin()
        assert ledger.peak == 40


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd3_medium", 2_243_171_520), ("sd3_large", 8_056_627_520), ("flux_dev", 11_901_408_320)],
)
def test_published_sizes(name, count, choice):
    transformer = (
        Untrained(recipe=choice("backbone", name)).load(torch.device("meta")).pipe.transformer
    )
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in frozen) == count
    assert {p.dtype for p in transformer.parameters() if p.requires_grad} == {torch.float32}
    assert weight(frozen) == 2 * count


def test_half_precision_narrows_what_is_kept():
    exp = footprint.composed([*footprint.TINY, "backbone=sd3_tiny_lora", "backbone.dtype=bfloat16"])
    wide = dataclasses.replace(exp, backbone=dataclasses.replace(exp.backbone, dtype="float32"))
    narrow, full = (predict(e).phases["update"]["activations"] for e in (exp, wide))
    assert 0.5 * full < narrow < 0.95 * full


def test_shards_divide_what_a_strategy_divides(monkeypatch):
    """Of activations, which take longest to predict, nothing is asked."""
    monkeypatch.setattr(memory, "_peak", lambda *_: 0)

    def held(strategy):
        eight = [f"strategy={strategy}", "strategy.processes=8", "data.prompts=8", "eval.prompts=8"]
        found = predict(footprint.composed([*footprint.TINY, *eight]))
        return found.held["policy"], found.held["moments"], found.phases["step"]["gradients"]

    policy, moments, gradients = held("ddp")
    assert held("zero1") == (policy, moments // 8, gradients)
    assert held("zero2") == (policy, moments // 8, gradients // 8)
    assert held("fsdp")[1:] == held("zero3")[1:] == (moments // 8, gradients // 8)
    assert policy // 8 < held("fsdp")[0] < policy


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(
        ConfigError, match=r"backbone.model=some/other is not known here; give a folder"
    ):
        configurations("some/other")


def test_the_preset_of_24_gb_fits_and_needs_to(monkeypatch):
    """The network and its work are the same with the gold rewards kept, and are not called twice."""
    peaks, peak = [], memory._peak
    monkeypatch.setattr(memory, "_peak", lambda *given: peaks.append(peak(*given)) or peaks[-1])
    exp = footprint.composed(["experiment=sd35_pickscore", "preset=gpu_24gb"])
    held = dataclasses.replace(exp, eval=dataclasses.replace(exp.eval, keep_gold=True))
    fits, again = predict(exp), iter(peaks)
    monkeypatch.setattr(memory, "_peak", lambda *_: next(again))
    assert fits.peak < 0.9 * 24 * footprint.GIB < predict(held).peak
    assert not [*again]


@pytest.mark.parametrize("recipe", footprint.RECIPES.values())
@pytest.mark.parametrize(
    "preset", [path.stem for path in (cli.ROOT / "conf/preset").glob("*.yaml")]
)
def test_every_preset_goes_with_every_experiment(preset, recipe):
    _, strategy = footprint.CARDS.get(preset, (0, []))
    footprint.composed([f"experiment={recipe}", f"preset={preset}", *strategy])
