"""The training loop: replay is exact, gradients add up, runs learn and repeat or fail."""

import dataclasses
import functools
import json
from unittest.mock import patch

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
    Explosive,
    Fails,
    Grey,
    Indifferent,
    Model,
    draw_trajectory,
    experiment,
    load_policy,
    read_metrics,
    read_repeatable_metrics,
)

from grpo_guard import probe
from grpo_guard.kl.distance import gaussian
from grpo_guard.kl.penalty import Penalty
from grpo_guard.lifecycle.states import find_newest_state
from grpo_guard.old_policy import OldMeans
from grpo_guard.reward.mixture import Mixture
from grpo_guard.rng import noise
from grpo_guard.rollout import minibatches, transitions
from grpo_guard.schema import RunError, component
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.window import Random, Sliding, Window
from grpo_guard.session import prepare
from grpo_guard.train import accumulate, count_learning, iterate, train, update
from grpo_guard.types import Rows, concatenate

CLIPPINGS = {"vanilla": VANILLA, "guard": GUARD}
SGD = functools.partial(torch.optim.SGD, lr=1.0)


def make_rows(trajectory, steps_per_sample=None):
    """Make the training rows of a trajectory, with advantages from -2 to 2 in random order."""
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    return transitions(trajectory, torch.linspace(-2, 2, 32)[order], steps_per_sample)


def accumulate_gradient(session, trajectory, rows, size):
    """Return the gradient of the mean loss of some rows, forwarded `size` at a time.

    Also returns the replay of the rows.
    """
    session.policy.zero_grad()
    limits = session.limits()
    parts = [
        accumulate(session, trajectory, OldMeans(), part, limits, len(rows))
        for part in rows.split(size)
    ]
    gradients = [p.grad.flatten().double() for p in session.policy.parameters()]
    return torch.cat(gradients), concatenate(parts)


def flatten_weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def assert_same_weights(ours, theirs):
    """Compare two checkpoints bit by bit."""
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.fixture
def moved():
    """Return a session and a trajectory since which its policy has moved a little."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    with torch.no_grad():
        for p in session.policy.parameters():
            p += 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return session, trajectory


@pytest.mark.parametrize("steps_per_sample", [None, 2])
@pytest.mark.parametrize("clipping", CLIPPINGS.values(), ids=CLIPPINGS)
def test_a_policy_that_has_not_moved_replays_exactly(clipping, steps_per_sample):
    session = prepare(experiment(clipping=clipping))
    trajectory = draw_trajectory(session)
    for part in minibatches(make_rows(trajectory, steps_per_sample), trajectory, 2):
        _, replay = accumulate_gradient(session, trajectory, part, 32)
        for values in (replay.drift.along, replay.drift.square, replay.objective.loss):
            assert torch.equal(values, torch.zeros_like(values))
        assert not replay.objective.high.any()
        assert not replay.objective.low.any()


@pytest.mark.parametrize("size", [64, 16, 5])
def test_gradients_do_not_depend_on_microbatches(moved, size):
    session, trajectory = moved
    rows = make_rows(trajectory)
    whole, replay = accumulate_gradient(session, trajectory, rows, 128)
    parts, replay_in_parts = accumulate_gradient(session, trajectory, rows, size)
    assert replay.objective.high.any()
    assert replay.objective.low.any()
    assert (parts - whole).norm() < 1e-6 * whole.norm()
    loss = replay_in_parts.objective.loss
    assert torch.allclose(replay.objective.loss, loss, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clipping", CLIPPINGS.values(), ids=CLIPPINGS)
def test_a_run_does_not_depend_on_its_accumulation(clipping, tmp_path):
    """Forward the 128 rows of an update in one, two and eight microbatches, for two iterations."""
    results = []
    for size in (128, 64, 16):
        folder = tmp_path / str(size)
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
        results.append((read_repeatable_metrics(folder), load_policy(folder, 2)))
    (expected_rows, expected_weights), *others = results
    for rows, weights in others:
        for row, expected in zip(rows, expected_rows, strict=True):
            assert row == pytest.approx(expected, abs=1e-6)
        for name, expected in expected_weights.items():
            assert (weights[name] - expected).norm() < 1e-6 * expected.norm()


def test_gradients_of_minibatches_average_to_that_of_all(moved):
    session, trajectory = moved
    rows = make_rows(trajectory)
    whole, _ = accumulate_gradient(session, trajectory, rows, 32)
    parts = [
        accumulate_gradient(session, trajectory, part, 32)[0]
        for part in minibatches(rows, trajectory, 4)
    ]
    assert (torch.stack(parts).mean(0) - whole).norm() < 1e-6 * whole.norm()
    assert (parts[0] - whole).norm() > 1e-2 * whole.norm()


def test_the_gradient_of_a_row_is_taken_by_its_velocity():
    """On policy it is known: w_t |A| |v_gain| |eps| / D, over the number of rows."""
    session = prepare(experiment())
    trajectory = draw_trajectory(session)
    rows = make_rows(trajectory)
    _, replay = accumulate_gradient(session, trajectory, rows, 32)
    steps = trajectory.schedule[rows.step]
    weight = 1 / (steps.t - steps.t_next)
    eps = noise(trajectory.address, rows.sample, rows.step, SHAPE).flatten(1).norm(dim=1)
    expected = weight * rows.advantage.abs() * steps.v_gain.abs() * eps / D / len(rows)
    assert torch.allclose(replay.gradient, expected, rtol=1e-4, atol=0)


def test_an_update_clips_the_gradient_and_clears_it():
    session = prepare(experiment(optim=SGD, max_grad_norm=1e-3))
    trajectory = draw_trajectory(session)
    rows = make_rows(trajectory)
    before = flatten_weights(session.policy)
    gradient, _ = accumulate_gradient(session, trajectory, rows, 32)
    session.policy.zero_grad()
    _, metrics = update(session, trajectory, OldMeans(), rows, session.limits())
    step = flatten_weights(session.policy) - before
    assert metrics["grad_norm"].value == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert gradient.norm() > 1e-3
    assert torch.allclose(step.double(), -1e-3 * gradient / gradient.norm(), atol=1e-6)
    assert all(p.grad is None for p in session.policy.parameters())


def test_the_first_update_is_measured_only_if_it_is_the_only_one():
    _, one_update = iterate(prepare(experiment(updates=1)), 0)
    _, two_updates = iterate(prepare(experiment(updates=2)), 0)
    assert one_update["ratio_norm/std/02"].value == 0 < two_updates["ratio_norm/std/02"].value
    assert one_update["ratio_raw/std/02"].count == 32
    assert two_updates["ratio_raw/std/02"].count == 16


@pytest.mark.parametrize("name", ["vanilla", "guard"])
def test_rows_without_an_advantage_go_forward_only(name, monkeypatch):
    """They change nothing but the rounding of sums, and are measured as the others are."""
    objective = {"vanilla": VANILLA, "guard": GUARD}[name]
    settings = {"reward": Indifferent(), "clipping": objective, "microbatch": 4}

    def count_and_train():
        session = prepare(experiment(**settings))
        with patch.object(session.learner, "backward", wraps=session.learner.backward) as backward:
            session, metrics = iterate(session, 0)
        return backward.call_count, flatten_weights(session.policy), metrics

    few, weights, metrics = count_and_train()
    monkeypatch.setattr("grpo_guard.train.count_learning", lambda session, rows: len(rows.split(4)))
    many, expected, all_metrics = count_and_train()
    assert 0 < few < many == 32
    assert torch.allclose(weights, expected, rtol=0, atol=1e-6)
    for key, metric in all_metrics.items():
        if key.startswith(("ratio", "clip", "loss", "grad")) and "hist" not in key:
            assert metrics[key].count == metric.count
            assert metrics[key].value == pytest.approx(metric.value, rel=1e-3, abs=1e-6), key


def test_without_any_advantage_an_update_still_steps():
    session = prepare(experiment(reward=Indifferent(last="z")))
    _, metrics = iterate(session, 0)
    assert metrics["grad_norm"].value == 0


def test_a_penalty_gives_every_row_a_gradient():
    rows = Rows(sample=torch.arange(32), step=torch.zeros(32).long(), advantage=torch.zeros(32))
    penalty = Penalty(beta=0.1, distance=gaussian)
    with_penalty, without = (
        prepare(experiment(microbatch=4, **kl)) for kl in ({"kl": penalty}, {})
    )
    assert count_learning(with_penalty, rows) == 8
    assert count_learning(without, rows) == 1


def test_failures_are_counted_and_left_out():
    _, metrics = iterate(prepare(experiment(reward=Fails(share=0.125), max_failed=0.2)), 0)
    assert metrics["reward/failed"].value == 0.125
    assert metrics["reward/total"].count == 28
    trained = [key for key in metrics if key.startswith(("loss", "grad", "ratio"))]
    assert all(np.isfinite(metrics[key].value) for key in trained)


def test_too_many_failures_stop_the_run(tmp_path):
    message = r"^25.0% of the images could not be scored, over max_failed=0.1; fix the reward grey$"
    with pytest.raises(RunError, match=message):
        train(experiment(tmp_path, reward=Fails(share=0.25)), {})


def test_a_gold_reward_that_fails_stops_the_run(tmp_path):
    gold = {"grey": Grey(), "lost": Fails(share=0.5, name="lost")}
    evaluation = dataclasses.replace(experiment().eval, gold=gold)
    message = r"^50.0% of the images could not be scored, .*=0.1; fix the reward gold/lost$"
    with pytest.raises(RunError, match=message):
        train(experiment(tmp_path, eval=evaluation), {})
    train(experiment(tmp_path, eval=evaluation, max_failed=0.5), {})
    first = read_metrics(tmp_path)[0]
    assert first["eval/failed/gold/lost"] == 0.5
    assert first["eval/failed/gold/grey"] == first["eval/failed/proxy"] == 0


def test_failures_of_a_part_of_weight_0_are_counted_but_fail_no_image():
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
    # Rewards are negative squares: a factor below 1 brings them nearer to 0, their best.
    reward = [row["reward/total"] for row in rows[:-1]]
    assert np.mean(reward[-5:]) > 0.3 * np.mean(reward[:5])
    assert rows[-1]["eval/proxy/grey"] > 0.5 * rows[0]["eval/proxy/grey"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the folder of a run of three iterations with seed 0."""
    folder = tmp_path_factory.mktemp("finished")
    train(experiment(folder), {})
    return folder


def test_runs_repeat_to_the_last_digit(finished, tmp_path):
    torch.manual_seed(5)
    train(experiment(tmp_path), {})
    assert read_repeatable_metrics(tmp_path) == read_repeatable_metrics(finished)
    ours, theirs = (np.load(folder / "histograms.npz") for folder in (tmp_path, finished))
    assert set(ours) == set(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert_same_weights(load_policy(tmp_path, 3), load_policy(finished, 3))


def test_seeds_differ(finished, tmp_path):
    train(experiment(tmp_path, seed=1), {})
    for ours, theirs in zip(read_metrics(tmp_path), read_metrics(finished), strict=True):
        keys = [key for key in ours if key.startswith(("reward/total", "loss/policy", "grad_norm"))]
        assert all(ours[key] != theirs[key] for key in keys)


PER_STEP = """
ratio_raw/mean ratio_raw/std ratio_norm/mean ratio_norm/std ratio_own/mean ratio_own/std
clip/high clip/low clip/high_pos_adv clip/low_neg_adv clip/range grad_share"""
PER_RUN = """
iteration images update lr loss/policy loss/kl grad_norm update/skipped
reward/grey reward/total reward/failed reward/failed/grey reward/group_std advantage/zero_std_groups
time/rollout time/reward time/update time/total throughput/images_per_s memory/peak_bytes
watch/dark_fraction watch/edge_density watch/color_entropy watch/saturation watch/grid_energy
watch/diversity"""


def test_a_run_folder_holds_the_promised_metrics(finished):
    rows = read_metrics(finished)
    per_step = {f"{key}/{step:02d}" for key in PER_STEP.split() for step in range(4)}
    trained = {*PER_RUN.split(), *per_step}
    evaluated = {"eval/proxy/grey", "eval/gold/grey", "eval/kl", "time/eval"}
    evaluated |= {"eval/failed/proxy", "eval/failed/gold/grey", "eval/over_optimising"}
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert [row["images"] for row in rows[:3]] == [32, 64, 96]
    assert [row["update"] for row in rows[:3]] == [2, 4, 6]
    assert set(rows[1]) == trained
    assert set(rows[0]) == set(rows[2]) == trained | evaluated
    assert set(rows[3]) == {"iteration"} | evaluated
    assert rows[0]["eval/kl"] == 0 < rows[2]["eval/kl"]
    assert sum(rows[1][f"grad_share/{step:02d}"] for step in range(4)) == pytest.approx(1)


def test_a_run_folder_holds_histograms_pictures_and_checkpoints(finished):
    histograms = np.load(finished / "histograms.npz")
    assert histograms["iteration"].tolist() == [0, 1, 2]
    for kind in ("raw", "norm"):
        for step in range(4):
            assert histograms[f"ratio_{kind}/hist/{step:02d}"].sum(1).tolist() == [16] * 3
    pictures = {f"{iteration:06d}.{kind}" for iteration in (0, 2, 3) for kind in ("json", "png")}
    samples = {path.name for path in (finished / "samples").iterdir()}
    assert samples == pictures | {"captions.txt"}
    checkpoints = {path.name for path in (finished / "checkpoints").iterdir()}
    assert checkpoints == {"000002", "000003"}


def test_a_checkpoint_is_the_policy_after_that_iteration(finished, tmp_path):
    train(experiment(tmp_path, iterations=2), {})
    assert_same_weights(load_policy(tmp_path, 2), load_policy(finished, 2))
    second, third = (load_policy(finished, iteration)["map.bias"] for iteration in (2, 3))
    assert not torch.equal(second, third)


@pytest.mark.parametrize(
    "window",
    [Random(length=2, within=Window()), Sliding(length=2, stride=1, hold=1, within=Window())],
)
def test_a_window_that_moves(window, tmp_path):
    """Each iteration trains, measures and stores the steps of its own window and no others."""
    train(experiment(tmp_path, sde=Flow(level=0.7, window=window), iterations=4), {})
    rows = read_metrics(tmp_path)[:4]
    histograms = np.load(tmp_path / "histograms.npz")
    for iteration, row in enumerate(rows):
        inside = set(window.steps(5, 0, iteration).nonzero().flatten().tolist())
        measured = {int(key[-2:]) for key in row if key.startswith("grad_share")}
        stored = {
            int(key[-2:])
            for key in histograms
            if key.startswith("ratio_raw/hist") and histograms[key][iteration].any()
        }
        assert measured == stored == inside


def test_a_gradient_that_is_not_finite_moves_nothing():
    """Each of the two updates of an iteration is two forwards; the fourth of all is spoiled."""
    session = prepare(experiment(backbone=Explosive(at=[3])))
    trajectory = draw_trajectory(session)
    first, second = minibatches(make_rows(trajectory), trajectory, 2)
    update(session, trajectory, OldMeans(), first, session.limits())
    before = flatten_weights(session.policy)
    _, metrics = update(session, trajectory, OldMeans(), second, session.limits())
    assert metrics["update/skipped"].value == 1
    assert torch.equal(flatten_weights(session.policy), before)
    _, metrics = update(session, trajectory, OldMeans(), second, session.limits())
    assert metrics["update/skipped"].value == 0
    assert (flatten_weights(session.policy) != before).all()


def test_too_many_gradients_that_are_not_finite_stop_the_run_and_are_listed(tmp_path):
    """All forwards from iteration 1 on are spoiled, so the fourth skip falls into iteration 2.

    Each of its two updates has two microbatches, and each microbatch one NaN row. The check before
    training goes forward four times with a gradient.
    """
    backbone = Explosive(at=list(range(8, 100)))
    exp = experiment(tmp_path, backbone=backbone, iterations=9, max_skipped=3)
    message = r"^4 updates in a row had a gradient that is not finite, over max_skipped=3; "
    with pytest.raises(RunError, match=message):
        train(exp, {})
    entries = json.loads((tmp_path / "not_finite_0.json").read_text())
    assert {row["iteration"] for row in entries} == {2}
    assert len(entries) == 4
    assert {row["prompt"] for row in entries} <= set("abcdef")
    assert find_newest_state(tmp_path).name == "000002"


class Faint(torch.autograd.Function):
    """Passes a gradient through float16, a millionth of its size, as at many latent dimensions."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (1e-6 * gradient).half().float() / 1e-6


class FaintModel(Model):
    """A model whose gradients pass through Faint; the loss is scaled if `dtype` is float16."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.policy.register_forward_hook(lambda module, inputs, v: Faint.apply(v))


@component
class FaintBackbone(Backbone):
    """A backbone whose model is FaintModel."""

    scaled: bool
    """True: the loss is scaled against underflow."""

    def load(self, device):
        return FaintModel(torch.float16 if self.scaled else torch.float32)


def measure_iteration(backbone):
    """Return by how much one iteration of SGD moves the weights, and its metrics."""
    session = prepare(experiment(backbone=backbone, optim=SGD))
    before = flatten_weights(session.policy)
    _, metrics = iterate(session, 0)
    return flatten_weights(session.policy) - before, metrics


def test_float16_gradients_do_not_vanish():
    expected, metrics = measure_iteration(Backbone())
    scaled, scaled_metrics = measure_iteration(FaintBackbone(scaled=True))
    unscaled, _ = measure_iteration(FaintBackbone(scaled=False))
    largest = expected.abs().max().item()
    assert torch.allclose(scaled, expected, rtol=1e-2, atol=1e-2 * largest)
    assert unscaled.norm() < 0.5 * expected.norm()
    keys = ["grad_norm", *(key for key in metrics if key.startswith("grad_share/"))]
    values, scaled_values = (
        {key: measured[key].value for key in keys} for measured in (metrics, scaled_metrics)
    )
    assert scaled_values == pytest.approx(values, rel=1e-2)


def test_the_peak_of_memory_is_that_of_training(tmp_path, monkeypatch):
    """What is tried before it may need more, such as the largest microbatch of microbatch=auto."""
    calls = []
    draw = probe.draw_probe
    monkeypatch.setattr(probe, "draw_probe", lambda *xs: calls.append("try") or draw(*xs))
    monkeypatch.setattr(probe, "reset_peak", lambda device: calls.append(str(device)))
    train(experiment(tmp_path, iterations=1), {})
    assert calls == ["try", "cpu"]
