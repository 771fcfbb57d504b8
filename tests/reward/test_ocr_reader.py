"""OCR in processes: results do not change, a killed process loses nothing, and none is left."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo_guard.reward import _ocr_reader as reader
from grpo_guard.reward import ocr
from grpo_guard.reward.ocr import OCR
from grpo_guard.world import captions, render

CPU = torch.device("cpu")
SETTINGS = {"match": "substring", "detect": True, "side": 96, "confidence": 0.5}


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(3)
    prompts = captions.draw_captions(rng, 6, captions.all_prompts(("words",), heldout=False))
    return torch.from_numpy(render.render(prompts, rng)).permute(0, 3, 1, 2).float() / 255, prompts


@pytest.fixture(scope="module")
def started():
    """Collects every process that is started."""
    return list[subprocess.Popen[bytes]]()


@pytest.fixture(scope="module")
def processes(started):
    """Start two reader processes; a black picture kills its reader and the replacement."""

    class Fragile(reader.ReaderProcess):
        def __init__(self, *settings):
            super().__init__(*settings)
            started.append(self.process)

        def read(self, picture):
            if picture.size and not picture.any():
                self.process.kill()
            return super().read(picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "ReaderProcess", Fragile)
        yield reader.ReaderPool(2, SETTINGS["detect"], SETTINGS["side"])


@pytest.fixture
def score(processes, monkeypatch):
    monkeypatch.setattr(ocr, "ReaderPool", lambda *_: processes)
    return OCR(**SETTINGS, workers=2).load(CPU)


@pytest.fixture(scope="module")
def here(drawn):
    """Read the pictures in this process."""
    return OCR(**SETTINGS, workers=0).load(CPU)(*drawn)


def alike(scores, others):
    return torch.equal(scores.total, others.total) and scores.notes == others.notes


@pytest.mark.parametrize(("cores", "workers"), [(6, 6), (208, 32)])
def test_many_cores_get_no_more_processes_than_are_of_use(cores, workers, monkeypatch):
    monkeypatch.setattr(ocr, "cores_per_process", lambda: cores)
    assert OCR(**SETTINGS, workers=None)._worker_count() == workers


def test_processes_read_the_same(score, drawn, here):
    assert here.total.mean() > 0.5
    assert alike(score(*drawn), here)


def test_processes_leave_the_cores_to_others(processes, started):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert [os.getpriority(os.PRIO_PROCESS, process.pid) for process in started[:2]] == [
        own + reader.NICENESS
    ] * 2


def test_a_killed_process_is_replaced_and_nothing_is_lost(score, drawn, here, started):
    before = len(started)
    started[0].kill()
    started[0].wait()
    assert alike(score(*drawn), here)
    assert len(started) == before + 1


def test_a_picture_that_ends_every_process_fails_alone(score, drawn, here, started, caplog):
    images, prompts = drawn[0].clone(), drawn[1]
    images[1] = 0
    before = len(started)
    with caplog.at_level(logging.WARNING):
        rewards = score(images, prompts)
    assert rewards.failed.tolist() == [row == 1 for row in range(len(prompts))]
    assert torch.equal(rewards.total[2:], here.total[2:])
    assert "an OCR process has ended with status -9" in caplog.text
    assert len(started) >= before + 1


def test_the_error_of_a_process_is_raised(processes, started):
    before = len(started)
    with pytest.raises(reader.ReadFailed, match="Error: "):
        processes.read(np.empty((0, 0, 3), np.uint8))
    assert len(started) <= before + 1  # the last test may have left a dead process


def test_a_process_ends_with_its_owner():
    owner = reader.ReaderProcess(True, 96)
    process = owner.process
    del owner
    assert process.returncode is not None


def test_a_killed_parent_leaves_no_process():
    """A process that is left would hold stderr open."""
    imported = "import sys; from _ocr_reader import ReaderProcess; p = ReaderProcess(True, 96)"
    code = f"{imported}; print('torch' in sys.modules, flush=True); input()"
    pipe, path = subprocess.PIPE, os.environ | {"PYTHONPATH": str(Path(reader.__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=path, text=True
    )
    assert parent.stdout.readline() == "False\n"
    parent.kill()
    assert parent.communicate(timeout=60) == ("", "")
    assert parent.returncode == -9
