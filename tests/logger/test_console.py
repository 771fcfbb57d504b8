"""The display of a run may be lost; the run goes on without it."""

import io
import os
import re
import sys

import pytest

from grpo_guard.lasting import LastingStream
from grpo_guard.logger import RunInfo
from grpo_guard.logger.console import Console
from grpo_guard.metrics import mean


def leave_pipe():
    """Return a stream whose reader has left, as `| head -1` does."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", buffering=1)


def close_terminal():
    """Return the stream of a terminal that has been closed."""
    controller, terminal = os.openpty()
    stream = open(terminal, "w", buffering=1)  # noqa: SIM115
    os.close(controller)
    return stream


def close_stream():
    stream = io.StringIO()
    stream.close()
    return stream


LOST = {
    "pipe": leave_pipe,
    "terminal": close_terminal,
    "closed": close_stream,
    "none": lambda: None,
}


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
@pytest.mark.parametrize("forced", [False, True], ids=["lines", "bar"])
def test_a_run_outlives_its_display(tmp_path, monkeypatch, lose, forced):
    import torch

    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
    run = RunInfo(folder=tmp_path, config={}, iterations=3)
    lost = lose()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", lost)
        with Console(live=True).open(run) as sink:
            for iteration in range(3):
                sink.log(iteration, {"reward/total": mean(torch.ones(2))})
    if lost is not None:
        lost.close()


@pytest.mark.parametrize(
    "name", ["run", "14-22-01-123456_pickscore_guard_seed0_optim.lr=0.0003" * 2]
)
def test_the_counter_and_the_time_left_are_whole_in_80_columns(tmp_path, monkeypatch, name):
    """The name gives way at its beginning; the scores have a line of their own."""
    import torch

    for key, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "COLUMNS": "80"}.items():
        monkeypatch.setenv(key, value)
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    run = RunInfo(folder=tmp_path / name, config={}, iterations=1000)
    scores = {f"eval/proxy/part_{index}": mean(torch.ones(2)) for index in range(9)}
    with Console(live=True).open(run) as sink:
        sink.log(998, {"reward/total": mean(torch.ones(2))} | scores)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    *_, first, second = [line for line in plain.split("\n") if line.strip()]
    assert re.search(r" 999/1000 left \S+\s*$", first)
    assert first.rpartition("━")[0].strip("━ ╸").endswith(name[-8:])
    assert second.startswith("reward 1  proxy/part_0 1")
    assert max(len(first.strip("\r")), len(second.strip("\r"))) <= 80
    assert second.rstrip().endswith("proxy/part_3 1")  # a score that has no room is left out whole


def test_what_a_buffer_holds_has_a_place_to_go():
    """Otherwise Python would fail to write it at its exit, and exit with code 120."""
    lost = leave_pipe()
    stream = LastingStream.wrap(lost)
    assert stream.write("a line\n") == 7
    stream.flush()
    lost.flush()
    lost.close()


def test_a_stream_that_is_read_gets_everything():
    text = io.StringIO()
    stream = LastingStream.wrap(text)
    assert LastingStream.wrap(stream) is stream
    print("one", "two", file=stream)
    assert text.getvalue() == "one two\n"
    assert not stream.isatty()


def test_an_error_that_is_not_a_lost_display_is_raised():
    stream = LastingStream.wrap(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(UnicodeEncodeError):
        stream.write("é")


@pytest.mark.parametrize(("start", "iteration", "left"), [(0, 0, "2:00"), (60, 60, "1:00")])
def test_the_time_left_counts_what_was_done_since_the_start(
    tmp_path, monkeypatch, capsys, start, iteration, left
):
    """The first of 3 iterations took 59.8 seconds; the first after a resume, one second."""
    import torch

    iterations = 3 if start == 0 else 121
    seconds = iter([0.0, 59.8 if start == 0 else 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    run = RunInfo(folder=tmp_path, config={}, iterations=iterations, start=start)
    with Console(live=False).open(run) as sink:
        sink.log(iteration, {"reward/total": mean(torch.ones(2))})
    assert f"{iteration + 1}/{iterations}  left {left}\n" in capsys.readouterr().err
