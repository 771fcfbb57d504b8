"""Hostile values for every setting are refused in one line, or an experiment is built."""

import os
import subprocess
import sys
from pathlib import Path

from grpo_guard.console import cli

TESTS = Path(__file__).parent


def test_every_hostile_setting_is_refused_in_one_line(tmp_path):
    """Run in a process of its own, where these tests' type checks are not installed."""
    paths = [cli.ROOT, TESTS]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "fuzzing"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    tried, refused, early, seconds = map(int, done.stdout.split())
    print(f"{refused} of {tried} cases were refused, in {seconds} s of CPU")
    assert tried > 5000
    assert refused > tried / 2
    assert early > 0.8 * refused
    assert not list(tmp_path.iterdir())
