"""Files that people hand in, damaged: read, or refused in one line; nothing in them runs.

The parsers of prompts, GenEval's JSON lines, pictures and states have such tests of their own:
tests/data, tests/command/test_evaluate.py and tests/lifecycle/test_state_reader.py.
"""

import io
import json

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from grpo_guard.console import cli
from grpo_guard.logger.folder import read_rows
from grpo_guard.remote.wire import (
    Offer,
    WireError,
    pack_offer,
    pack_request,
    pack_rewards,
    unpack_offer,
    unpack_request,
    unpack_rewards,
)
from grpo_guard.report.parts import PNG_END
from grpo_guard.report.reading import read_run
from grpo_guard.reward import rewards_from_parts
from grpo_guard.reward.clip_formats import loading, read_tensors
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

COUNT = settings(max_examples=60)
DAMAGES = {
    "length": st.none() | st.integers(0, 400),
    "place": st.integers(0, 500),
    "wrong": st.binary(max_size=4) | st.sampled_from([b"[]", b"{}", b'"a"', b"1e999", b"[" * 2000]),
}


def damage(content, length, place, wrong):
    """Cut off a file and overwrite a part of it."""
    content = content[:length]
    return content[:place] + wrong + content[place + len(wrong) :]


def read(read_file, *arguments, refusals=ConfigError):
    """Return the line of the refusal, or "" if the file is read."""
    line = ""
    try:
        read_file(*arguments)
    except refusals as error:
        line = str(error)
    assert "\n" not in line
    return line


class Program:
    """Writes a file when somebody unpickles it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def to_npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


ROW = {"iteration": 0, "images": 4, "reward/total": 0.5}
PICTURE = {"prompt": "a", "scores": {"proxy": 0.5, "gold": None}, "notes": {"proxy": ["seen"]}}
HISTOGRAMS = {"iteration": [0], "edges": [0.0, 1.0], "ratio_raw/hist/00": [[4]]}
RUN = {
    "config.yaml": b"clipping: {name: guard}\nseed: 0\n",
    "metrics.jsonl": f"{json.dumps(ROW)}\n{json.dumps(ROW | {'iteration': 1})}\n".encode(),
    "prompt_scores.jsonl": json.dumps({"iteration": 0, "eval/gold/a": [0.5, None]}).encode(),
    "histograms.npz": to_npz(**HISTOGRAMS),
    "samples/000000.json": json.dumps([PICTURE]).encode(),
    "samples/captions.txt": b"a\n",
    "samples/000000.png": PNG_END,
}


def write_run(folder, **changes):
    for name, content in (RUN | changes).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_whole_run_is_read(tmp_path):
    run = read_run(write_run(tmp_path))
    assert [row["iteration"] for row in run.rows] == [0, 1]
    assert run.histograms.counts["ratio_raw/hist/00"].tolist() == [[4]]
    assert run.samples.scores[0] == ({"proxy": 0.5},)


@COUNT
@given(name=st.sampled_from(sorted(RUN)), **DAMAGES)
@example(name="metrics.jsonl", length=0, place=0, wrong=b'{"iteration": "a"}')
@example(name="metrics.jsonl", length=0, place=0, wrong=b'{"iteration": 1' + b"0" * 400 + b"}")
@example(name="metrics.jsonl", length=0, place=0, wrong=b'{"iteration": NaN}')
@example(name="metrics.jsonl", length=0, place=0, wrong=b"[" * 2000)
@example(name="prompt_scores.jsonl", length=0, place=0, wrong=b'{"iteration": 1e999, "a": [[]]}')
@example(name="samples/000000.json", length=0, place=0, wrong=b"[[]]")
@example(name="samples/000000.json", length=0, place=0, wrong=b"[" * 2000)
@example(name="samples/captions.txt", length=0, place=0, wrong=b"\xff")
@example(name="config.yaml", length=0, place=0, wrong=b"!!python/object/apply:os.system [ls]")
@example(name="config.yaml", length=0, place=0, wrong=b"a: &a [*a, *a]")
def test_a_damaged_run_is_read_or_refused(tmp_path_factory, name, length, place, wrong):
    folder = tmp_path_factory.getbasetemp() / "damaged_run"
    write_run(folder, **{name: damage(RUN[name], length, place, wrong)})
    read(read_run, folder)
    read(read_rows, folder, 0, 10)
    read(cli.read_config, folder / "config.yaml")


def test_a_program_in_histograms_does_not_run(tmp_path):
    program = np.array([Program(tmp_path / "ran")], dtype=object)
    folder = write_run(tmp_path / "run", **{"histograms.npz": to_npz(**HISTOGRAMS, a=program)})
    [line] = read_run(folder).damages
    assert "allow_pickle=False" in line
    assert not (tmp_path / "ran").exists()


def to_torch(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


TENSORS = {"a.weight": torch.ones(3)}
SCORERS = {"a.safetensors": save(TENSORS), "a.bin": to_torch({"state_dict": TENSORS})}


def read_scorer(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    with loading("model", "a", name):
        return read_tensors(path)


@COUNT
@given(name=st.sampled_from(sorted(SCORERS)), **DAMAGES)
@example(name="a.bin", length=0, place=0, wrong=to_torch([1]))
def test_damaged_weights_of_a_scorer_are_read_or_refused(
    tmp_path_factory, name, length, place, wrong
):
    content = damage(SCORERS[name], length, place, wrong)
    read(read_scorer, tmp_path_factory.getbasetemp(), name, content)


def test_a_program_in_weights_does_not_run(tmp_path):
    content = to_torch({"state_dict": Program(tmp_path / "ran")})
    assert "cannot be loaded" in read(read_scorer, tmp_path, "a.bin", content)
    assert not (tmp_path / "ran").exists()


OFFER = Offer(reward="grey", parts=("grey",), weights={"grey": 1.0}, limit=1000)
REWARDS = rewards_from_parts(grey=torch.tensor([0.5, 0.25]))
MESSAGES = {
    "offer": (pack_offer(OFFER), unpack_offer),
    "request": (pack_request(torch.ones(1, 3, 2, 2), [Prompt(text="a")]), unpack_request),
    "rewards": (pack_rewards(REWARDS), lambda body: unpack_rewards(body, 2, OFFER)),
}


@COUNT
@given(name=st.sampled_from(sorted(MESSAGES)), **DAMAGES)
@example(name="offer", length=0, place=0, wrong=b"[" * 2000)
def test_damaged_messages_are_read_or_refused(name, length, place, wrong):
    body, unpack = MESSAGES[name]
    read(unpack, damage(body, length, place, wrong), refusals=WireError)
