"""A state from somebody else is read or refused in a line, and nothing in it runs."""

import io
import json
import pickle
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from resuming import AVERAGE, make_writer, run
from toy import ADAPTIVE, experiment

from grpo_guard.lifecycle.checkpoint import Snapshot
from grpo_guard.lifecycle.states import SEAL, find_flaw, hash_files, read_state
from grpo_guard.schema import ConfigError
from grpo_guard.session import prepare, snapshot


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(folder, iterations=1)
    return folder / "state/000001"


@pytest.fixture(scope="module")
def tensors():
    session = prepare(experiment(clipping=ADAPTIVE, ema=AVERAGE))
    return snapshot(session).tensors


def forge(state, folder, name, content):
    """Copy a state with another content of a file, and with a seal that fits it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(state, folder)
    (folder / name).write_bytes(content)
    if name != SEAL:
        (folder / SEAL).write_text(json.dumps(hash_files(folder)))
    return folder


class Program:
    """Writes a file when somebody unpickles it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def refuse(state, tensors):
    """Return the line with which a state is refused, or "" if it is read."""
    line = ""
    try:
        read_state(state, tensors)
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line
    assert line == "" or line.startswith(f"resume={state} does not fit this run (")
    return line


def test_a_whole_state_is_read(state, tensors):
    assert refuse(state, tensors) == ""


ADAM = {"exp_avg": torch.zeros(2)}
"""The optimizer state of a weight."""


def write_state(folder, policy, trained):
    """Write a state with weights of these names, some of them trained."""
    tensors = describe(policy, trained)
    make_writer(folder).save_state(1, Snapshot(tensors=tensors, notes={}))
    return folder / "state/000001"


def describe(policy, trained):
    """Return tensors as a run has them, for weights of which some are trained."""
    return {
        "policy": {name: torch.ones(2) for name in policy},
        "optimizer": {"state": dict.fromkeys(trained, ADAM)},
    }


@pytest.mark.parametrize(
    ("policy", "trained", "line"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["a", "b", "buffer"], ["a", "b"], ""),
        (["c"], ["c"], "(it lacks policy.c);"),
        (["a", "b", "c"], ["a", "b", "c"], "(it lacks policy.c);"),
        (["a"], ["a"], "(it has b, which is not trained here);"),
    ],
    ids=["the same", "a buffer", "a whole transformer", "more adapters", "fewer adapters"],
)
@pytest.mark.parametrize("buffers", [[], ["position"]], ids=["", "buffers there"])
def test_a_state_of_other_weights_is_refused(policy, trained, line, buffers, tmp_path):
    """torch would read what fits, which may be nothing, and the run would go on without it."""
    state = write_state(tmp_path, ["a", "b", *buffers], ["a", "b"])
    refusal = refuse(state, describe(policy, trained))
    assert line in refusal
    assert bool(line) == bool(refusal)


def test_an_index_that_is_a_program_does_not_run(state, tensors, tmp_path):
    for content in (Program(tmp_path / "ran"), {"a": Program(tmp_path / "ran")}):
        forged = forge(state, tmp_path / "forged", ".metadata", pickle.dumps(content))
        assert not find_flaw(forged)
        assert "open, which no state needs" in refuse(forged, tensors)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "index", [b"cos\nsystem\n(S'ls'\ntR.", b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93."]
)
def test_a_name_that_an_index_does_not_need_is_refused(state, tensors, tmp_path, index):
    forged = forge(state, tmp_path / "forged", ".metadata", index)
    assert "which no state needs" in refuse(forged, tensors)


def test_an_index_of_another_type_is_refused(state, tensors, tmp_path):
    forged = forge(state, tmp_path / "forged", ".metadata", pickle.dumps([1]))
    assert "its index is a list" in refuse(forged, tensors)


def test_a_value_that_is_a_program_does_not_run(state, tensors, tmp_path):
    """The values that are no tensor, such as the learning rate, are files of torch in a file."""
    index = pickle.loads((state / ".metadata").read_bytes())
    rate = next(k for k in index.storage_data if k.fqn == "optimizer.param_groups.0.lr")
    buffer = io.BytesIO()
    torch.save({"a": Program(tmp_path / "ran")}, buffer)
    part = (state / index.storage_data[rate].relative_path).read_bytes()
    place = index.storage_data[rate]
    index.storage_data[rate] = type(place)(place.relative_path, len(part), buffer.tell())
    forged = forge(state, tmp_path / "forged", ".metadata", pickle.dumps(index))
    forged = forge(
        forged.rename(tmp_path / "first"), forged, place.relative_path, part + buffer.getvalue()
    )
    line = "optimizer.param_groups.0.lr holds more than numbers and texts"
    assert line in refuse(forged, tensors)
    assert not (tmp_path / "ran").exists()


@settings(max_examples=60)
@given(
    name=st.sampled_from([".metadata", "__0_0.distcp", "notes.json"]),
    length=st.none() | st.integers(0, 500),
    place=st.integers(0, 4999),
    wrong=st.binary(max_size=4),
)
@example(name=".metadata", length=0, place=0, wrong=b"")
@example(name="notes.json", length=2, place=0, wrong=b"[]")
def test_a_damaged_state_is_read_or_refused_in_a_line(
    state, tensors, tmp_path_factory, name, length, place, wrong
):
    content = (state / name).read_bytes()[:length]
    content = content[:place] + wrong + content[place + len(wrong) :]
    forged = forge(state, tmp_path_factory.getbasetemp() / "damaged", name, content)
    refuse(forged, tensors)


@pytest.mark.parametrize("seal", ["[]", "5", "", '{"notes.json": 5}', '"a"'])
def test_a_seal_that_is_none_is_a_flaw(state, tmp_path, seal):
    assert "\n" not in find_flaw(forge(state, tmp_path / "forged", SEAL, seal.encode()))
    assert find_flaw(forge(state, tmp_path / "forged", SEAL, seal.encode()))
