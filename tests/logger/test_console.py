"""The display of a run may be lost; the run goes on without it."""

import io
import os
import sys

import pytest

from grpo_guard.logger import RunInfo
from grpo_guard.logger.console import Console, LastingStream
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
