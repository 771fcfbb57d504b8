"""The loop: on-policy replay is exact, gradients add up, runs learn, repeat, and end well however they end."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch
from toy import (
    GUARD,
    SHAPE,
    VANILLA,
    Backbone,
    D,
    Data,
    Grey,
    Model,
    draw_trajectory,
    experiment,
    read_metrics,
)

from grpo_guard.lifecycle.checkpoint import find_newest_state
from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.mixture import Mixture
from grpo_guard.rng import noise
from grpo_guard.rollout import minibatches, transitions
from grpo_guard.schema import ConfigError, RunError, component
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.ode import Ode
from grpo_guard.sde.window import Random, Sliding, Window
from grpo_guard.session import prepare
from grpo_guard.train import accumulate, iterate, train, update
from grpo_guard.types import concatenate

CLIPPINGS = {"vanilla": VANILLA, "guard": GUARD}


def rows_of(session, trajectory, take=None):
    advantages = torch.linspace(-2, 2, 32)[
        torch.randperm(32, generator=torch.Generator().manual_seed(0))
    ]
    return transitions(trajectory, advantages, take)


def gradient(session, trajectory, rows, size):
    """The gradient of the mean loss of some rows, forwarded `size` at a time."""
    session.model.policy.zero_grad()
    limits = session.limits()
    parts = [accumulate(session, trajectory, part, limits, len(rows)) for part in rows.split(size)]
    return torch.cat(
        [p.grad.flatten().double() for p in session.model.policy.parameters()]
    ), concatenate(parts)


@pytest.fixture
def moved():
    """A session whose policy has moved a little since it made the trajectory."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    with torch.no_grad():
        for p in session.model.policy.parameters():
            p += 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return session, trajectory


@pytest.mark.parametrize("take", [None, 2])
@pytest.mark.parametrize("clipping", CLIPPINGS.values(), ids=CLIPPINGS)
def test_an_untouched_policy_replays_exactly(clipping, take):
    session = prepare(experiment(clipping=clipping))
    trajectory = draw_trajectory(session)
    for part in minibatches(rows_of(session, trajectory, take), trajectory, 2):
        _, replay = gradient(session, trajectory, part, 32)
        for values in (replay.drift.along, replay.drift.square, replay.objective.loss):
            assert torch.equal(values, torch.zeros_like(values))
        assert not replay.objective.high.any()
        assert not replay.objective.low.any()


@pytest.mark.parametrize("size", [64, 16, 5])
def test_gradients_do_not_depend_on_microbatches(moved, size):
    rows = rows_of(*moved)
    (whole, seen), (parts, again) = gradient(*moved, rows, 128), gradient(*moved, rows, size)
    assert seen.objective.high.any()
    assert seen.objective.low.any()
    assert (parts - whole).norm() < 1e-6 * whole.norm()
    assert torch.allclose(seen.objective.loss, again.objective.loss, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clipping", CLIPPINGS.values(), ids=CLIPPINGS)
def test_a_run_does_not_depend_on_its_accumulation(clipping, tmp_path):
    """Two iterations, the 128 rows of an update all at once, in two microbatches and in eight."""
    sizes = (128, 64, 16)
    runs = [tmp_path / str(size) for size in sizes]
    for folder, size in zip(runs, sizes, strict=True):
        folder.mkdir()
        exp = experiment(
            folder,
            microbatch=size,
            clipping=clipping,
            iterations=2,
            data=Data(repeats=32),
            updates=4,
        )
        train(exp, {})
    whole, *parts = ([read_metrics(folder), policy(folder, 2)] for folder in runs)
    for rows, weights in parts:
        for row, wanted in zip(rows, whole[0], strict=True):
            steady = {
                key for key in wanted if not key.startswith(("time/", "throughput/", "memory/"))
            }
            assert {key: row[key] for key in steady} == pytest.approx(
                {key: wanted[key] for key in steady}, abs=1e-6
            )
        for name, value in weights.items():
            assert (value - whole[1][name]).norm() < 1e-6 * whole[1][name].norm()


def test_gradients_of_minibatches_average_to_that_of_all(moved):
    rows = rows_of(*moved)
    whole, _ = gradient(*moved, rows, 32)
    parts = [gradient(*moved, part, 32)[0] for part in minibatches(rows, moved[1], 4)]
    assert (torch.stack(parts).mean(0) - whole).norm() < 1e-6 * whole.norm()
    assert (parts[0] - whole).norm() > 1e-2 * whole.norm()


def test_the_gradient_of_a_row_is_that_of_its_velocity():
    """On policy it is known: w_t |A| |v_gain| |eps| / D, over the number of rows."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    rows = rows_of(session, trajectory)
    _, replay = gradient(session, trajectory, rows, 32)
    steps = trajectory.schedule[rows.step]
    eps = noise(trajectory.address, rows.sample, rows.step, SHAPE).flatten(1).norm(dim=1)
    wanted = (
        rows.advantage.abs() * steps.v_gain.abs() / (steps.t - steps.t_next) * eps / D / len(rows)
    )
    assert torch.allclose(replay.gradient, wanted, rtol=1e-4, atol=0)


def test_an_update_clips_the_gradient_and_forgets_it():
    session = prepare(
        experiment(optim=functools.partial(torch.optim.SGD, lr=1.0), max_grad_norm=1e-3)
    )
    trajectory, policy = draw_trajectory(session), session.model.policy
    before = torch.cat([p.detach().flatten().clone() for p in policy.parameters()])
    wanted, _ = gradient(session, trajectory, rows_of(session, trajectory), 32)
    policy.zero_grad()
    _, metrics = update(session, trajectory, rows_of(session, trajectory), session.limits())
    step = torch.cat([p.detach().flatten() for p in policy.parameters()]) - before
    assert metrics["grad_norm"].value == pytest.approx(wanted.norm().item(), rel=1e-4)
    assert wanted.norm() > 1e-3
    assert torch.allclose(step.double(), -1e-3 * wanted / wanted.norm(), atol=1e-6)
    assert all(p.grad is None for p in policy.parameters())


def test_ratios_are_measured_once_the_policy_has_moved():
    once, twice = (iterate(prepare(experiment(updates=updates)), 0)[1] for updates in (1, 2))
    assert once["ratio_norm/std/02"].value == 0 < twice["ratio_norm/std/02"].value
    assert once["ratio_raw/std/02"].count == 32
    assert twice["ratio_raw/std/02"].count == 16


@component
class Fails:
    """Cannot score some samples."""

    share: float
    name: str = "grey"

    compares = False

    def accepts(self, prompt):
        return True

    weight_bytes = 0

    def load(self, device):
        def score(images, prompts):
            grey = images.mean((1, 2, 3))
            grey[: round(self.share * len(images))] = torch.nan
            return rewards_from_parts(**{self.name: grey})

        return score


def test_failures_are_counted_and_take_no_part():
    _, metrics = iterate(prepare(experiment(reward=Fails(share=0.125), max_failed=0.2)), 0)
    assert metrics["reward/failed"].value == 0.125
    assert metrics["reward/total"].count == 28
    assert all(
        np.isfinite(m.value)
        for key, m in metrics.items()
        if key.startswith(("loss", "grad", "ratio"))
    )


def test_too_many_failures_stop_the_run(tmp_path):
    with pytest.raises(
        RunError,
        match=r"^25.0% of the images could not be scored, over max_failed=10.0%; mend grey$",
    ):
        train(experiment(tmp_path, reward=Fails(share=0.25)), {})


def test_a_gold_that_fails_stops_the_run(tmp_path):
    heldout = dataclasses.replace(
        experiment().eval, gold={"grey": Grey(), "lost": Fails(share=0.5, name="lost")}
    )
    with pytest.raises(
        RunError, match=r"^50.0% of the images could not be scored, .*=10.0%; mend gold/lost$"
    ):
        train(experiment(tmp_path, eval=heldout), {})
    train(experiment(tmp_path, eval=heldout, max_failed=0.5), {})
    assert read_metrics(tmp_path)[0]["eval/failed/gold/lost"] == 0.5
    assert (
        read_metrics(tmp_path)[0]["eval/failed/gold/grey"]
        == read_metrics(tmp_path)[0]["eval/failed/proxy"]
        == 0
    )


def test_what_is_only_looked_at_fails_nobody_but_is_counted():
    mixture = Mixture(
        rewards={"grey": Grey(), "lost": Fails(share=0.5, name="lost")},
        weights={"grey": 1.0, "lost": 0.0},
    )
    _, metrics = iterate(prepare(experiment(reward=mixture, max_failed=0.5)), 0)
    assert metrics["reward/failed"].value == 0 < metrics["reward/failed/lost"].value == 0.5


@pytest.mark.parametrize("clipping", CLIPPINGS.values(), ids=CLIPPINGS)
def test_a_run_learns(clipping, tmp_path):
    optim = functools.partial(torch.optim.Adam, lr=5e-2)
    train(experiment(tmp_path, clipping=clipping, iterations=20, optim=optim), {})
    rows = read_metrics(tmp_path)
    reward = [row["reward/total"] for row in rows[:-1]]
    assert np.mean(reward[-5:]) > 0.3 * np.mean(reward[:5])
    assert rows[-1]["eval/proxy/grey"] > 0.5 * rows[0]["eval/proxy/grey"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three iterations with seed 0."""
    folder = tmp_path_factory.mktemp("finished")
    train(experiment(folder), {})
    return folder


def numbers(folder):
    """Everything in metrics.jsonl that is not about the machine."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))}
        for row in read_metrics(folder)
    ]


def policy(folder, iteration=3):
    return torch.load(folder / f"checkpoints/{iteration:06d}/policy.pt")


def test_runs_repeat_to_the_last_digit(finished, tmp_path):
    torch.manual_seed(5)
    train(experiment(tmp_path), {})
    assert numbers(tmp_path) == numbers(finished)
    ours, theirs = (np.load(folder / "histograms.npz") for folder in (tmp_path, finished))
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert all(torch.equal(a, policy(finished)[key]) for key, a in policy(tmp_path).items())


def test_seeds_differ(finished, tmp_path):
    train(experiment(tmp_path, seed=1), {})
    for ours, theirs in zip(numbers(tmp_path), numbers(finished), strict=True):
        shared = {
            key for key in ours if key.startswith(("reward/total", "loss/policy", "grad_norm"))
        }
        assert all(ours[key] != theirs[key] for key in shared)


PER_STEP = """ratio_raw/mean ratio_raw/std ratio_norm/mean ratio_norm/std ratio_own/mean ratio_own/std
clip/high clip/low clip/high_pos_adv
clip/low_neg_adv clip/range grad_share"""
PER_RUN = """iteration images update reward/grey reward/total reward/failed reward/failed/grey advantage/zero_std_groups
loss/policy loss/kl grad_norm update/skipped lr time/rollout
time/reward time/update time/total throughput/images_per_s memory/peak_bytes
watch/dark_fraction watch/edge_density watch/color_entropy watch/saturation watch/grid_energy watch/diversity"""


def test_a_run_folder_holds_the_promised_numbers(finished):
    rows = read_metrics(finished)
    keys = {
        *PER_RUN.split(),
        *(f"{key}/{step:02d}" for key in PER_STEP.split() for step in range(4)),
    }
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert set(rows[1]) == keys
    assert [row["images"] for row in rows[:3]] == [32, 64, 96]
    assert [row["update"] for row in rows[:3]] == [2, 4, 6]
    evaluated = {"eval/proxy/grey", "eval/gold/grey", "eval/kl", "time/eval"}
    evaluated |= {"eval/failed/proxy", "eval/failed/gold/grey"}
    assert set(rows[0]) == set(rows[2]) == keys | evaluated
    assert set(rows[3]) == {"iteration"} | evaluated
    assert rows[0]["eval/kl"] == 0 < rows[2]["eval/kl"]
    assert sum(rows[1][f"grad_share/{step:02d}"] for step in range(4)) == pytest.approx(1)


def test_a_run_folder_holds_histograms_pictures_and_checkpoints(finished):
    histograms = np.load(finished / "histograms.npz")
    assert histograms["iteration"].tolist() == [0, 1, 2]
    for kind in ("raw", "norm"):
        for step in range(4):
            assert histograms[f"ratio_{kind}/hist/{step:02d}"].sum(1).tolist() == [16] * 3
    assert sorted(p.name for p in (finished / "samples").iterdir()) == [
        "000000.json", "000000.png", "000002.json", "000002.png", "000003.json", "000003.png", "captions.txt",
    ]  # fmt: skip
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["000002", "000003"]


def test_a_checkpoint_is_the_policy_after_that_iteration(finished, tmp_path):
    train(experiment(tmp_path, iterations=2), {})
    assert all(torch.equal(a, policy(finished, 2)[key]) for key, a in policy(tmp_path, 2).items())
    assert not torch.equal(policy(finished, 2)["map.bias"], policy(finished, 3)["map.bias"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"iterations": 0}, "iterations=0 is not positive"),
        ({"updates": 0}, "updates=0 is not positive"),
        ({"microbatch": -1}, "microbatch=-1 is not positive"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 is not positive"),
        ({"steps": 1}, "steps=1 leaves no trained step; give 2 or more"),
        ({"sde": Ode()}, "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps"),
        ({"sde": Flow(level=0.7, window=Window(first=0, last=5))}, "last=5 includes the last of 5 steps, which is never trained"),
        ({"sde": Flow(level=0.7, window=Window(first=4))}, "first=4 leaves no trained step of 5; give less than 4"),
        ({"steps_per_sample": 5}, "steps_per_sample=5 is outside 1..4, the trained steps; give null for all"),
        ({"updates": 3}, "data.repeats=8 = 32 samples do not divide into updates=3; nearest that does: 2"),
        ({"microbatch": 24}, "= 32 samples do not divide into microbatch=24; nearest that does: 16"),
        (
            {"data": Data(repeats=6), "microbatch": 24, "steps_per_sample": 3},
            "36 rows per update (data.prompts=4 x data.repeats=6 = 24 samples, 3 steps each) do not divide into "
            "microbatch=24; nearest that does: 12",
        ),
    ],
)  # fmt: skip
def test_refusals(changes, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        experiment(**changes)


@pytest.mark.parametrize(
    "window",
    [Random(length=2, within=Window()), Sliding(length=2, stride=1, hold=1, within=Window())],
)
def test_a_window_that_moves(window, tmp_path):
    """Every iteration trains its own steps; what is kept of a step says in which iterations it was trained."""
    train(experiment(tmp_path, sde=Flow(level=0.7, window=window), iterations=4), {})
    rows = read_metrics(tmp_path)[:4]
    histograms = np.load(tmp_path / "histograms.npz")
    for i, row in enumerate(rows):
        inside = set(window.steps(5, 0, i).nonzero().flatten().tolist())
        assert {int(key[-2:]) for key in row if key.startswith("grad_share")} == inside
        seen = {
            int(key[-2:])
            for key in histograms
            if key.startswith("ratio_raw/hist") and histograms[key][i].any()
        }
        assert seen == inside


class Explodes(Model):
    """The velocity of the first row is NaN in some forwards of training, counted from 0."""

    def __init__(self, at):
        super().__init__()
        self.forwards = iter(range(1000))
        self.policy.register_forward_hook(
            lambda module, inputs, v: self.spoil(v, at) if v.requires_grad else None
        )

    def spoil(self, v, at):
        factor = torch.ones(len(v), 1, 1, 1)
        factor[0] = torch.nan if next(self.forwards) in at else 1.0
        return factor * v


@component
class Explosive(Backbone):
    at: list[int]

    def load(self, device):
        return Explodes(self.at)


def test_a_gradient_that_is_not_finite_moves_nothing(tmp_path):
    """Each of the two updates of an iteration is two forwards; the fourth of all is spoiled."""
    session = prepare(experiment(backbone=Explosive(at=[3])))
    trajectory = draw_trajectory(session)
    first, second = minibatches(rows_of(session, trajectory), trajectory, 2)
    update(session, trajectory, first, session.limits())
    before = [p.detach().clone() for p in session.model.policy.parameters()]
    _, metrics = update(session, trajectory, second, session.limits())
    assert metrics["update/skipped"].value == 1
    assert all(
        torch.equal(a, b) for a, b in zip(before, session.model.policy.parameters(), strict=True)
    )
    _, metrics = update(session, trajectory, second, session.limits())
    assert metrics["update/skipped"].value == 0
    assert not any(
        torch.equal(a, b) for a, b in zip(before, session.model.policy.parameters(), strict=True)
    )


def test_too_many_of_them_stop_the_run_and_are_named(tmp_path):
    exp = experiment(
        tmp_path, backbone=Explosive(at=list(range(4, 100))), iterations=9, max_skipped=3
    )
    with pytest.raises(
        RunError,
        match=r"^4 updates in a row had a gradient that is not finite, over max_skipped=3; ",
    ):
        train(exp, {})
    entries = json.loads((tmp_path / "not_finite_0.json").read_text())
    assert {row["iteration"] for row in entries} == {2}
    assert len(entries) == 2
    assert {row["prompt"] for row in entries} <= set("abcdef")
    assert find_newest_state(tmp_path).name == "000002"


class Faint(torch.autograd.Function):
    """A velocity whose gradient passes through float16 a million times smaller than it is, as at large D."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (1e-6 * gradient).half().float() / 1e-6


class FaintModel(Model):
    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.policy.register_forward_hook(lambda module, inputs, v: Faint.apply(v))


@component
class FaintBackbone(Backbone):
    scaled: bool

    def load(self, device):
        return FaintModel(torch.float16 if self.scaled else torch.float32)


def test_float16_gradients_do_not_vanish():
    def moved(backbone):
        session = prepare(
            experiment(backbone=backbone, optim=functools.partial(torch.optim.SGD, lr=1.0))
        )
        before = [p.clone() for p in session.model.policy.parameters()]
        _, metrics = iterate(session, 0)
        after = session.model.policy.parameters()
        return torch.cat(
            [(a - b).flatten() for a, b in zip(after, before, strict=True)]
        ).detach(), metrics

    (wanted, whole), (scaled, half), (lost, _) = map(
        moved, (Backbone(), FaintBackbone(scaled=True), FaintBackbone(scaled=False))
    )
    assert torch.allclose(scaled, wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())
    assert lost.norm() < 0.5 * wanted.norm()
    assert half["grad_norm"].value == pytest.approx(whole["grad_norm"].value, rel=1e-2)
    shares = [key for key in whole if key.startswith("grad_share/")]
    assert [half[k].value for k in shares] == pytest.approx(
        [whole[k].value for k in shares], rel=1e-2
    )
