"""Numbers of a fresh run follow from what it kept; a number that is changed is seen."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from toy import ADAPTIVE, Backbone, Explosive, Fails, Grey, Indifferent, Model, experiment

from grpo_guard.command import verification, verify
from grpo_guard.command.verification.kept import read_kept
from grpo_guard.command.verification.numbers import compare
from grpo_guard.console import cli
from grpo_guard.old_policy.replay import ReplayedOldPolicy
from grpo_guard.old_policy.tangent import TangentOldPolicy
from grpo_guard.reward.mixture import Mixture
from grpo_guard.schema import component
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Window
from grpo_guard.train import train

PARTS = {"clipping": "guard", "advantage": "group", "kl": "none", "sde": "flow"}
"""The choices of a run whose parts do not say otherwise."""


def compose_parts(**choices):
    """Compose some choices of conf/ as a run does."""
    overrides = [
        f"{group}={name}" if "/" in group else f"+{group}={name}"
        for group, name in (PARTS | choices).items()
    ]
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return compose(overrides=overrides)


def train_kept(folder, *, iterations=1, keep=0, changes=None, **choices):
    """Train the toy with choices of conf/, and keep an iteration."""
    cfg = compose_parts(**choices)
    parts = {group: instantiate(node, _convert_="all") for group, node in cfg.items()}
    exp = experiment(folder, iterations=iterations, keep_trajectory=keep, **parts | (changes or {}))
    folder.mkdir(exist_ok=True)
    config = OmegaConf.to_container(cfg, resolve=True)
    config |= {
        "updates": exp.updates,
        "backbone": {},
        "_target_": "grpo_guard.experiment.Experiment",
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    train(exp, config)
    return folder


def verify_run(folder, capsys):
    """Return the exit code and the output of the command."""
    code = 0
    try:
        verify.main([str(folder)])
    except SystemExit as end:
        code = end.code
    streams = capsys.readouterr()
    return code, streams.out + streams.err


def assert_agrees(folder, capsys, count):
    code, text = verify_run(folder, capsys)
    assert code == 0, text
    assert f"all {count} numbers follow from what the iteration kept" in text
    assert max(map(len, text.splitlines())) <= 80


CASES = {
    "vanilla": {"kl": "x"},
    "temp_reweight": {"sde": "dance", "kl": "v"},
    "mean_revised": {"advantage": "global"},
    "rationorm": {"sde": "cps"},
    "guard": {"advantage": "shuffled"},
    "guard_upstream": {"kl": "x_flow_grpo"},
    "guard_velocity": {"advantage": "none"},
    "dppo": {},
}
"""Other choices that go with each objective, so that all of them are verified at least once."""


def test_every_objective_and_advantage_is_known():
    names = {path.stem for path in Path(cli.CONF, "clipping").glob("*.yaml")}
    assert set(CASES) == names
    advantages = {choices.get("advantage", "group") for choices in CASES.values()}
    assert advantages | {"per_reward"} == {
        path.stem for path in Path(cli.CONF, "advantage").glob("*.yaml")
    }


@pytest.mark.parametrize("name", CASES)
def test_a_fresh_run_agrees(name, tmp_path, capsys):
    train_kept(tmp_path, clipping=name, **CASES[name])
    assert_agrees(tmp_path, capsys, 79)


@pytest.mark.parametrize("weight", ["earlier_half", "later_half"])
def test_a_run_that_trains_half_of_its_steps_agrees(weight, tmp_path, capsys):
    changes = {"sde": Flow(level=0.7, window=Window(first=1, last=4)), "microbatch": 16}
    train_kept(tmp_path, changes=changes, **{"clipping/weight": weight})
    assert_agrees(tmp_path, capsys, 65)


def test_a_run_with_everything_unusual_agrees(tmp_path, capsys):
    """Old means of their own, a moving range, a window, two rewards, and pictures that failed."""
    mixture = Mixture(
        rewards={"grey": Grey(), "lost": Fails(share=0.125, name="lost")},
        weights={"grey": 2.0, "lost": -0.5},
    )
    changes = {
        "old_policy": ReplayedOldPolicy(),
        "clipping": ADAPTIVE,
        "sde": Flow(level=0.7, window=Window(first=1, last=4)),
        "steps_per_sample": 2,
        "updates": 4,
        "microbatch": 8,
        "reward": mixture,
        "max_failed": 0.5,
    }
    settings = {"clipping/adaptation": "target_fraction", "advantage": "per_reward"}
    train_kept(tmp_path, iterations=3, keep=2, changes=changes, **settings)
    assert_agrees(tmp_path, capsys, 61)


def test_a_run_that_measures_by_derivatives_agrees(tmp_path, capsys):
    """Half of its rows have no advantage, and go forward only."""
    changes = {"old_policy": TangentOldPolicy(), "reward": Indifferent(), "microbatch": 4}
    train_kept(tmp_path, changes=changes)
    assert_agrees(tmp_path, capsys, 79)


def test_an_iteration_with_one_update_agrees(tmp_path, capsys):
    """Its ratios are exactly 1 and its losses 0, up to the rounding of float32."""
    train_kept(tmp_path, changes={"updates": 1})
    assert_agrees(tmp_path, capsys, 79)


@pytest.mark.parametrize(
    ("at", "choices"),
    [
        ([0], {"clipping": "guard"}),
        ([3], {"clipping": "guard"}),
        ([3], {"clipping": "guard", "kl": "x"}),
        ([2, 3], {"clipping": "vanilla"}),
        ([3], {"clipping": "dppo"}),
        ([0, 1, 2, 3], {"clipping": "guard", "clipping/ratio": "norm_batch"}),
    ],
)
def test_an_iteration_with_rows_that_are_not_finite_agrees(at, choices, tmp_path, capsys):
    """The two updates go forward four times; the numbers of the other rows are logged.

    The check before training has gone forward four times with a gradient.
    """
    spoiled = [4 + forward for forward in at]
    train_kept(tmp_path, changes={"backbone": Explosive(at=spoiled)}, **choices)
    assert_agrees(tmp_path, capsys, 79)
    assert f"128 rows ({len(at)} not finite)" in verify_run(tmp_path, capsys)[1]


@component
class Overflowing(Backbone):
    """A backbone whose velocities are NaN where the first number of the latents is large."""

    def load(self, device):
        model = Model(device)

        def overflow(module, inputs, v):
            return torch.where(inputs[0][:, :1, :1, :1] > 1.2, torch.nan, v)

        model.policy.register_forward_hook(overflow)
        return model


@pytest.mark.parametrize("microbatch", [1, 4, 16])
@pytest.mark.parametrize("kl", ["none", "x"])
def test_an_iteration_with_samples_that_are_not_finite_agrees(kl, microbatch, tmp_path, capsys):
    """They cannot be scored, so they have no advantage. Some of their rows go forward only."""
    changes = {"backbone": Overflowing(), "max_failed": 0.9, "microbatch": microbatch}
    train_kept(tmp_path, changes=changes, kl=kl)
    assert_agrees(tmp_path, capsys, 79)
    assert "not finite)" in verify_run(tmp_path, capsys)[1]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return a run of Guard with a KL penalty whose only iteration is kept."""
    return train_kept(tmp_path_factory.mktemp("kept") / "run", kl="x")


@pytest.fixture
def copy(kept, tmp_path):
    """Return a copy of it that may be changed."""
    return Path(shutil.copytree(kept, tmp_path / "run"))


def read_logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_logged(folder, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


COVERED = (
    "images", "update", "reward/grey", "reward/total", "reward/failed", "reward/failed/grey",
    "reward/group_std", "advantage/zero_std_groups", "ratio_raw/mean/01", "ratio_raw/std/01",
    "ratio_norm/mean/02", "ratio_norm/std/02", "ratio_own/mean/03", "ratio_own/std/03",
    "clip/high/00", "clip/low/01", "clip/high_pos_adv/02", "clip/low_neg_adv/03", "clip/range/00",
    "grad_share/01", "loss/policy", "loss/kl",
)  # fmt: skip


def differing(folder):
    """Return the keys of the numbers that do not agree."""
    (iteration,) = read_kept(folder)
    return {number.key for number in compare(iteration) if not number.agrees}


def test_a_number_that_was_not_measured_is_seen(kept):
    """A ratio is off by a hundredth of its spread, everything else by a ten-thousandth or so."""
    (iteration,) = read_kept(kept)
    logged = iteration.logged
    for key in COVERED:
        spread = 0.01 * logged[key.replace("mean", "std")] if key.startswith("ratio") else 1e-5
        changed = replace(iteration, logged={**logged, key: logged[key] * (1 + 1e-4) + spread})
        assert {number.key for number in compare(changed) if not number.agrees} == {key}


def test_numbers_that_differ_are_printed_and_fail_the_command(copy, capsys):
    rows = read_logged(copy)
    del rows[0]["loss/kl"]
    rows[0]["reward/total"] = 0.25
    write_logged(copy, rows)
    code, text = verify_run(copy, capsys)
    assert code == 1
    assert "\nreward/total: the run has 0.25, computed -0." in text
    assert "\nloss/kl: the run has nan, computed" in text
    assert "77 of 79 numbers follow" in text
    assert text.count("DIFFER") == 2
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("mean", {"ratio_own/mean/03", "loss/policy", "loss/kl", "grad_share/03"}),
        ("x", {"x_next = mu + s eps"}),
        ("noise", {"noise of steps", "x_next = mu + s eps", "ratio_own/mean/03"}),
        ("row/advantage", {"loss/policy"}),
        ("reference_mean", {"loss/kl"}),
        ("schedule/std", {"std", "ratio_raw/mean/03"}),
        ("schedule/v_gain", {"v_gain"}),
    ],
)
def test_a_trajectory_that_was_changed_is_seen(name, differs, copy):
    (file,) = (copy / "trajectory").glob("*.safetensors")
    tensors = load_file(file)
    tensors[name] *= 1.01
    save_file(tensors, file)
    assert differs <= differing(copy)


def test_an_advantage_of_one_sample_is_seen(copy):
    (file,) = (copy / "trajectory").glob("*.safetensors")
    tensors = load_file(file)
    sample = tensors["row/sample"][5]
    tensors["row/advantage"][tensors["row/sample"] == sample] += 1e-4
    save_file(tensors, file)
    group = tensors["group"][sample]
    assert f"of group {group}" in differing(copy)


@pytest.mark.parametrize("key", ["total", "parts"])
def test_scores_that_were_changed_are_seen(key, copy):
    (file,) = (copy / "trajectory").glob("*.json")
    notes = json.loads(file.read_text())
    scores = notes["rewards"]["total"] if key == "total" else notes["rewards"]["parts"]["grey"]
    scores[3] += 1e-4
    file.write_text(json.dumps(notes))
    assert "totals" in differing(copy)


def test_a_run_of_several_processes_agrees(copy, capsys):
    """Each process writes its rows; here those of one are dealt to two, as `deal` deals samples."""
    (file,) = (copy / "trajectory").glob("*.safetensors")
    tensors = load_file(file)
    update = torch.zeros(32, dtype=torch.long)
    update[tensors["row/sample"]] = tensors["row/update"]
    owner = torch.zeros(32, dtype=torch.long)
    for number in range(2):
        members = (update == number).nonzero().flatten()
        owner[members] = torch.arange(len(members)) % 2
    for rank in range(2):
        samples = (owner == rank).nonzero().flatten()
        rows = owner[tensors["row/sample"]] == rank
        place = torch.zeros(32, dtype=torch.long)
        place[samples] = torch.arange(16)
        part = {
            key: tensor if "schedule" in key or not len(tensor) else tensor[rows]
            for key, tensor in tensors.items()
            if key not in ("x", "sample", "group")
        }
        part |= {key: tensors[key][samples] for key in ("x", "sample", "group")}
        part["row/sample"] = place[part["row/sample"]]
        save_file(part, file.with_name(f"000000_{rank}.safetensors"))
    notes = file.with_name("000000.json")
    notes.write_text(notes.read_text().replace('"processes": 1', '"processes": 2'))
    assert_agrees(copy, capsys, 79)


def spoil_nothing(folder):
    """Remove what was kept."""
    shutil.rmtree(folder / "trajectory")


def spoil_tensors(folder):
    (file,) = (folder / "trajectory").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])


def spoil_notes(folder):
    (file,) = (folder / "trajectory").glob("*.json")
    file.write_text("{}")


def spoil_processes(folder):
    (file,) = (folder / "trajectory").glob("*.json")
    file.write_text(file.read_text().replace('"processes": 1', '"processes": 2'))


def spoil_metrics(folder):
    write_logged(folder, read_logged(folder)[1:])


def spoil_lines(folder):
    """Remove the iteration, and leave half a line and bytes that are no text."""
    (folder / "metrics.jsonl").write_bytes(b'\xff\n{"iteration": 1, "a')


def spoil_scores(folder):
    (file,) = (folder / "trajectory").glob("*.json")
    notes = json.loads(file.read_text())
    notes["rewards"]["parts"] = []
    file.write_text(json.dumps(notes))


def spoil_objective(folder):
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("clip.Clip", "mine.Spo"))


def spoil_advantage(folder):
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("group.Group", "mine.Best"))


def test_lines_of_other_iterations_may_be_damaged(copy, capsys):
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"iteration": 9, "images"')
    assert_agrees(copy, capsys, 79)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing, "kept no trajectory; train with keep_trajectory=N"),
        (spoil_tensors, "cannot be used (SafetensorError"),
        (spoil_notes, "cannot be used (KeyError: 'processes')"),
        (spoil_processes, "cannot be used (FileNotFoundError"),
        (spoil_metrics, "has no iteration 0; let the run go on"),
        (spoil_lines, "has no iteration 0; let the run go on"),
        (spoil_scores, "cannot be used (AttributeError"),
        (spoil_objective, "clipping=Spo is not known to this command, which knows Clip, Dppo"),
        (spoil_advantage, "advantage=Best is not known to this command, which knows Group"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_a_line(spoil, message, copy, capsys):
    spoil(copy)
    code, text = verify_run(copy, capsys)
    assert code == 2
    assert text.startswith("error: ")
    assert message in text
    assert len(text.splitlines()) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    code, text = verify_run(tmp_path / "none", capsys)
    assert (code, len(text.splitlines())) == (2, 1)


def test_the_maths_is_not_that_of_the_package():
    """The modules import each other, the two kinds of error, and what reads config.yaml."""
    folder = Path(verification.__file__).parent
    imports = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"(?:from|import) (grpo_guard[\w.]*)", path.read_text())
    }
    others = {name for name in imports if not name.startswith("grpo_guard.command.verification")}
    assert others == {"grpo_guard.schema", "grpo_guard.console"}
