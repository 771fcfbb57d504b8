"""The metrics of every objective after two iterations stay as they are, to about 3 digits.

`python tests/test_golden.py` writes the numbers anew.
"""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from toy import experiment

from grpo_guard.session import prepare
from grpo_guard.train import iterate

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests/golden/objectives.json"
NAMES = sorted(path.stem for path in (ROOT / "conf/clipping").glob("*.yaml"))
KEYS = ("loss/policy", "grad_norm", "reward/total")
PER_STEP = [
    "ratio_raw/mean",
    "ratio_raw/std",
    "ratio_norm/std",
    "ratio_own/std",
    "clip/high",
    "clip/low",
    "grad_share",
]


def measure(name):
    """Return the metrics of the second iteration with an objective of conf/clipping."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        clipping = instantiate(compose(overrides=[f"+clipping={name}"]).clipping, _convert_="all")
    session = prepare(experiment(clipping=clipping))
    for iteration in range(2):
        session, metrics = iterate(session, iteration)
    keys = [*KEYS, *(f"{key}/{step:02d}" for key in PER_STEP for step in range(4))]
    return {key: metrics[key].value for key in keys}


@pytest.mark.parametrize("name", NAMES)
def test_objectives_keep_their_numbers(name):
    expected = json.loads(FILE.read_text(encoding="utf-8"))[name]
    values = measure(name)
    assert set(values) == set(expected)
    for key, value in expected.items():
        # The mean of ratios is near 0; its rounding is relative to the ratios' spread.
        scale = 1e-4 * abs(values[key.replace("/mean", "/std")]) if "/mean" in key else 1e-9
        assert values[key] == pytest.approx(value, rel=1e-3, abs=scale), key


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    golden = {
        name: {key: float(f"{value:.6g}") for key, value in measure(name).items()} for name in NAMES
    }
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
