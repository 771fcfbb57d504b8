"""What goes wrong while a run trains costs an iteration at most, and ends it in one line if at all.

docs/reliability.md lists these and the faults that other files try.
"""

import errno
import shutil
import time
from pathlib import Path

import pytest
import torch
from resuming import Saboteur, make_writer, run
from toy import Backbone, Model, read_metrics, read_repeatable_metrics

from grpo_guard.histogram_files import load_histograms
from grpo_guard.lifecycle import checkpoint
from grpo_guard.lifecycle.checkpoint import Checkpoints, Snapshot
from grpo_guard.lifecycle.states import find_newest_state, list_states
from grpo_guard.logger import folder as folder_logger
from grpo_guard.metrics import scalar
from grpo_guard.run_folder import report_lost_folder
from grpo_guard.schema import ConfigError, RunError, component

SHORT = {"iterations": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run of three iterations that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, **SHORT)
    return folder


def assert_continues(folder, whole):
    """Give the same command again; the run must end as if nothing had happened."""
    run(folder, **SHORT)
    assert read_repeatable_metrics(folder) == read_repeatable_metrics(whole)


class Hungry(Model):
    """A model without memory for one of its forwards, counted from 0: in the rollout or not."""

    def __init__(self, forward, *, trains):
        super().__init__()
        count = iter(range(1000))

        def take(module, inputs, v):
            if v.requires_grad == trains and next(count) == forward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        self.policy.register_forward_hook(take)


@component
class HungryBackbone(Backbone):
    """A backbone whose model is Hungry."""

    forward: int
    """The forward that fails."""
    trains: bool
    """True: a forward with a gradient, as in an update. False: one without, as in a rollout."""

    def load(self, device):
        return Hungry(self.forward, trains=self.trains)


@pytest.mark.parametrize(
    ("forward", "trains", "phase", "rows"),
    [
        (0, False, "rollout", 0),
        (9, False, "evaluation", 0),
        (16, False, "rollout", 1),
        (0, True, "rollout", 0),
        (10, True, "update", 1),
    ],
)
def test_memory_that_does_not_suffice_ends_a_run_in_a_line(
    forward, trains, phase, rows, whole, tmp_path
):
    """Before training, the noise floor takes 5 forwards, and 4 more as in an update.

    Then an evaluation and a rollout take 5, and each of an iteration's two updates takes 2.
    """
    backbone = HungryBackbone(forward=forward, trains=trains)
    message = (
        rf"^cpu is out of memory in the phase {phase}: .* and 2.00 GiB more did not fit; lower"
    )
    with pytest.raises(RunError, match=message):
        run(tmp_path, backbone=backbone, **SHORT)
    assert len(read_metrics(tmp_path)) == rows if rows else not find_newest_state(tmp_path)
    assert_continues(tmp_path, whole)


def test_a_disk_that_is_full_for_a_while_costs_one_state(whole, tmp_path, monkeypatch, caplog):
    """The state after iteration 2 has no room; the run goes on, and the next one is whole."""
    save = checkpoint.async_save
    count = iter(range(100))

    def save_or_fail(*arguments, **named):
        if next(count) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*arguments, **named)

    monkeypatch.setattr(checkpoint, "async_save", save_or_fail)
    run(tmp_path, **SHORT)
    assert "the state after iteration 2 was not saved ([Errno 28]" in caplog.text
    assert [state.name for state in list_states(tmp_path / "state")] == ["000003", "000001"]
    assert read_repeatable_metrics(tmp_path) == read_repeatable_metrics(whole)


def test_a_state_that_was_not_written_takes_no_room(tmp_path, monkeypatch, caplog):
    """The numbers of the run may need it; the line says what happened, and not where in torch."""

    class Full(checkpoint.FileSystemWriter):
        def write_data(self, *arguments):
            (Path(self.path) / "half").write_bytes(b"half of a state")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "FileSystemWriter", Full)
    writer = make_writer(tmp_path)
    writer.save_state(1, Snapshot(tensors={"weight": torch.ones(2)}, notes={}))
    writer.close()
    assert "iteration 1 was not saved ([Errno 28] No space left on device); the" in caplog.text
    assert not list((tmp_path / "state").iterdir())


def test_a_checkpoint_that_somebody_reads_is_replaced(tmp_path, monkeypatch):
    """NFS keeps a folder as long as a file of it is open."""
    writer = make_writer(tmp_path, best="gold")
    writer.after_evaluation(0, {"gold": scalar(1.0)})
    (tmp_path / "checkpoints/best/first").touch()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder, **_: None)
        writer.after_evaluation(1, {"gold": scalar(2.0)})
    assert not list((tmp_path / "checkpoints/best").iterdir())
    writer.after_evaluation(2, {"gold": scalar(3.0)})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["best"]


def test_a_folder_that_is_gone_ends_a_run_in_a_line(tmp_path, whole):
    folder = tmp_path / "run"
    message = rf"^output={folder} cannot be written any more .No such file or directory: .*; rest"
    # A thread that is writing a state at this moment would write it into a new folder.
    at_once = Checkpoints(every=1, keep=2, export_every=2, best=None, asynchronous=False)
    reward = Saboteur(act=lambda: shutil.rmtree(folder))
    with pytest.raises(RunError, match=message):
        run(folder, reward=reward, checkpoint=at_once, **SHORT)
    assert_continues(folder, whole)


def test_a_folder_that_is_gone_is_not_made_again_for_a_state(tmp_path):
    """It would lack the run's numbers."""
    folder = tmp_path / "run"
    writer = make_writer(folder)
    state = Snapshot(tensors={"weight": torch.ones(2)}, notes={})
    writer.after_iteration(1, False, lambda: state)
    writer.close()
    with pytest.raises(FileNotFoundError):
        writer.after_iteration(2, False, lambda: state)
    assert not folder.exists()
    folder.mkdir()
    writer.after_iteration(3, False, lambda: state)
    writer.close()
    assert find_newest_state(folder).name == "000003"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_folder_that_becomes_read_only_ends_a_run_in_a_line(code, tmp_path, whole, monkeypatch):
    save = folder_logger._save_arrays

    def refuse(file, arrays):
        if "000001" in file.name:
            raise OSError(code, "Refused", str(file))
        save(file, arrays)

    monkeypatch.setattr(folder_logger, "_save_arrays", refuse)
    with pytest.raises(RunError, match=f"^output={tmp_path} cannot be written any more .Refused: "):
        run(tmp_path, **SHORT)
    monkeypatch.undo()
    assert find_newest_state(tmp_path).name == "000001"
    assert_continues(tmp_path, whole)


def test_a_file_elsewhere_that_is_missing_is_not_the_folders_fault(tmp_path):
    with pytest.raises(FileNotFoundError), report_lost_folder(tmp_path / "run"):
        (tmp_path / "elsewhere").open()


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, whole, monkeypatch):
    """States have numbers, and durations come from a clock that nobody sets."""
    hours = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(hours))
    run(tmp_path, **SHORT)
    assert read_repeatable_metrics(tmp_path) == read_repeatable_metrics(whole)
    rows = read_metrics(tmp_path)
    assert all(row[key] >= 0 for row in rows for key in row if key.startswith("time/"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no archive"])
@pytest.mark.parametrize("name", ["histograms.npz", "histograms/000001.npz"])
def test_damaged_histograms_cost_themselves_not_the_run(name, content, whole, tmp_path, caplog):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    run(folder, iterations=4)
    assert f"{file} cannot be read (" in caplog.text
    damaged = file.with_suffix(".damaged")
    assert f"it is now {damaged.name}, and the run goes on without these histograms" in caplog.text
    assert damaged.read_bytes() == content
    left = [3] if file.parent == folder else [0, 1, 2, 3]
    assert load_histograms(folder / "histograms.npz")["iteration"].tolist() == left


def spoil_middle(text):
    """Change the second line as a disk may."""
    first, second, *others = text.splitlines(keepends=True)
    return "".join([first, second[:50], *others])


@pytest.mark.parametrize(
    "spoil", [spoil_middle, lambda text: "", lambda text: "\0" * len(text), lambda text: "{}\n"]
)
def test_numbers_that_are_lost_are_told(spoil, whole, tmp_path, caplog):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    file = folder / "metrics.jsonl"
    file.write_text(spoil(file.read_text()))
    run(folder, iterations=4)
    line = f"{file} lacks numbers of iterations before 3; the run goes on without them"
    assert line in caplog.text
    caplog.clear()
    run(Path(shutil.copytree(whole, tmp_path / "intact")), iterations=4)
    assert "lacks numbers" not in caplog.text


def test_numbers_that_are_damaged_while_a_run_goes_on_do_not_end_it(tmp_path):
    """The cards of its checkpoints lack the evaluation of the start."""
    file = tmp_path / "metrics.jsonl"
    run(tmp_path, reward=Saboteur(act=lambda: file.write_bytes(b'\xff{"itera\n')), **SHORT)
    assert (tmp_path / "checkpoints/000003/README.md").is_file()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", "^{file} cannot be read .Is a directory.; restore it"),
        ("prompt_scores.jsonl", "^{file} cannot be read .Is a directory.; restore it"),
        ("histograms.npz", "^output={folder} cannot be written any more .Is a directory: {file}"),
        ("samples/captions.txt", "^output={folder} cannot be written any more .Is a directory: "),
    ],
)
def test_a_folder_in_the_place_of_a_file_ends_a_run_in_a_line(name, line, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    file = folder / name
    file.unlink()
    file.mkdir()
    with pytest.raises((ConfigError, RunError), match=line.format(file=file, folder=folder)):
        run(folder, iterations=4)


@pytest.mark.parametrize("name", ["samples", "histograms"])
def test_a_file_in_the_place_of_a_folder_ends_a_run_in_a_line(name, whole, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).write_text("a file")
    line = f"^output={folder} cannot be written any more .File exists: {folder / name}.; restore it"
    with pytest.raises(RunError, match=line):
        run(folder, iterations=4)
