"""The notebook docs/tour.ipynb runs, and shows what it says."""

import json

import matplotlib
import pytest

from grpo_guard.console import cli

NOTEBOOK = json.loads((cli.ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Run all cells in order; return the names that they bind."""
    matplotlib.use("agg")
    bound = {}
    for source in CELLS:
        exec(compile(source, "docs/tour.ipynb", "exec"), bound)
    return bound


def test_the_ratio_is_one_before_the_update_and_moves_with_it(names):
    assert names["before"].abs().max() == 0
    assert names["raw"].abs().max() > 1e-3


def test_the_plain_ratio_is_shifted_and_uneven(names):
    steps = names["second"].step
    raw, norm = names["raw"], names["norm"]
    assert raw[steps == 8].mean() < -3 * raw[steps == 0].abs().mean()

    def spread(values):
        return values[steps == 8].std() / values[steps == 0].std()

    assert spread(norm) < spread(raw) / 2


def test_outputs_are_those_of_the_cells():
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = json.dumps([cell["outputs"] for cell in cells])
    assert "image/png" in text
    assert "site-packages" not in text
