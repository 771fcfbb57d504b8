"""A run continues from its newest whole state, and takes over from other runs what fits."""

import json
import shutil

import pytest
from resuming import AVERAGE, Saboteur, run
from toy import read_metrics, read_repeatable_metrics

from grpo_guard.data import Split
from grpo_guard.data.prompts import PromptFile, parse_plain
from grpo_guard.ema.none import NoEma
from grpo_guard.lifecycle.checkpoint import Checkpoints
from grpo_guard.lifecycle.states import (
    NOTES,
    SEAL,
    find_newest_state,
    hash_files,
    list_states,
    seal,
)
from grpo_guard.schema import ConfigError, RunError
from grpo_guard.types import Clause, Prompt

RARE = Checkpoints(every=9, keep=1, export_every=9, best="eval/gold/grey", asynchronous=False)
"""No state but the last one."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run of three iterations."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, iterations=3)
    return folder


def copy(whole, folder):
    shutil.copytree(whole, folder)
    return folder


def test_no_later_state_is_kept_in_the_place_of_a_whole_one(whole, tmp_path):
    folder = copy(whole, tmp_path / "run")
    damaged = (folder / "state/000003").rename(folder / "state/000009")
    (damaged / SEAL).unlink()
    often = Checkpoints(every=1, keep=1, export_every=9, best=None, asynchronous=False)
    run(folder, iterations=4, checkpoint=often)
    assert [state.name for state in list_states(folder / "state")] == ["000004"]


def test_a_run_without_a_whole_state_does_not_lose_its_numbers(whole, tmp_path):
    folder = copy(whole, tmp_path / "run")
    rows = read_metrics(folder)
    for state in list_states(folder / "state"):
        (state / SEAL).unlink()
    message = r"^output=.*run has states, but none that is whole; restore one, or remove .*/state"
    with pytest.raises(ConfigError, match=message):
        run(folder, iterations=4)
    assert read_metrics(folder) == rows


def fail():
    raise RunError("the reward is ill")


def test_a_run_from_a_state_has_a_state_of_its_own(whole, tmp_path):
    """It continues from there, even if the other run is gone, and not from the beginning."""
    origin = copy(whole, tmp_path / "origin")
    beginning = {"resume": str(origin / "state/000002"), "checkpoint": RARE}
    expected = tmp_path / "expected"
    run(expected, **beginning)
    assert [row["iteration"] for row in read_metrics(expected)] == [2, 3, 4, 5, 6]
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="the reward is ill"):
        run(folder, reward=Saboteur(act=fail), **beginning)
    assert [row["iteration"] for row in read_metrics(folder)] == [2, 3]
    shutil.rmtree(origin)
    run(folder, checkpoint=RARE)
    assert read_repeatable_metrics(folder) == read_repeatable_metrics(expected)


def test_a_run_from_a_state_has_a_best_checkpoint_of_its_own(tmp_path):
    """What the other run reached is no best checkpoint of this one."""
    often = Checkpoints(every=1, keep=1, export_every=9, best="eval/gold/grey", asynchronous=False)
    run(tmp_path / "one", iterations=2, checkpoint=often)
    notes = find_newest_state(tmp_path / "one") / "notes.json"
    text = notes.read_text()
    assert '"best": -' in text
    # As if the other run had reached more than this one ever will.
    forged = text.replace('"best": -', '"best": 1')
    notes.write_text(forged)
    seal = notes.with_name(SEAL)
    seal.write_text(json.dumps(hash_files(notes.parent)))
    run(tmp_path / "two", resume=str(notes.parent), checkpoint=RARE)
    assert (tmp_path / "two/checkpoints/best").is_dir()


def test_a_state_without_an_average_does_not_fit_a_run_that_has_one(tmp_path, whole):
    run(tmp_path / "plain", iterations=1, ema=NoEma())
    state = tmp_path / "plain/state/000001"
    with pytest.raises(ConfigError, match=r"does not fit this run \(it lacks average\.0\); give"):
        run(tmp_path / "averaged", resume=str(state), ema=AVERAGE)
    run(tmp_path / "plainer", resume=str(whole / "state/000002"), ema=NoEma())
    assert (tmp_path / "plainer/checkpoints/000006").is_dir()


def from_files(folder, **changes):
    """Return a source of the prompts in two files, which are written here."""
    files = {"train.txt": "a\nb\nc\n", "heldout.txt": "d\ne\n"} | changes
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return PromptFile(
        path=str(folder / "train.txt"),
        heldout=str(folder / "heldout.txt"),
        heldout_share=0.1,
        parse=parse_plain,
        prompts=4,
        repeats=8,
    )


@pytest.mark.parametrize(
    ("name", "text", "side"),
    [
        ("train.txt", "a\nb\nx\n", "training"),
        ("train.txt", "b\na\nc\n", "training"),
        ("train.txt", "a\nb\nc\nx\n", "training"),
        ("heldout.txt", "d\nx\n", "held-out"),
        ("heldout.txt", "a\nd\ne\n", "training and held-out"),
    ],
)
def test_a_run_does_not_go_on_with_other_prompts(name, text, side, tmp_path):
    folder = tmp_path / "run"
    run(folder, iterations=2, data=from_files(tmp_path))
    changed = from_files(tmp_path, **{name: text})
    message = (
        rf"^data\.path=\S*train\.txt: the {side} prompts are not those that the run in"
        r" output=\S*run had so far; restore them, or choose another folder and start there from a"
        r" state of that run with resume=STATE$"
    )
    with pytest.raises(ConfigError, match=message):
        run(folder, iterations=3, data=changed)
    assert [row["iteration"] for row in read_metrics(folder)] == [0, 1, 2]
    # Another run may begin from that state, and goes on with its own prompts.
    other = tmp_path / "other"
    state = str(folder / "state/000002")
    run(other, iterations=3, data=changed, resume=state)
    run(other, iterations=4, data=changed)
    run(folder, iterations=3, data=from_files(tmp_path))


def test_what_a_prompt_demands_is_part_of_it():
    one, two = (Prompt(text="a", include=(Clause(name="cup", count=n),)) for n in (1, 2))
    first, second = (Split(train=(prompt,), heldout=(one,)).hashes for prompt in (one, two))
    assert first["training"] != second["training"]
    assert first["held-out"] == second["held-out"]


def test_a_state_that_does_not_know_its_prompts_is_resumed(tmp_path):
    folder = tmp_path / "run"
    run(folder, iterations=2, data=from_files(tmp_path))
    state = folder / "state/000002"
    notes = json.loads((state / NOTES).read_text())
    del notes["prompts"]
    seal(state, notes)
    run(folder, iterations=3, data=from_files(tmp_path, **{"train.txt": "x\n"}))
    assert [row["iteration"] for row in read_metrics(folder)] == [0, 1, 2, 3]
