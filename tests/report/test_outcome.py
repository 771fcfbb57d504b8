"""The number that a search maximises, against numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from grpo_guard.report.outcome import first_crossing, search_objective
from grpo_guard.schema import ConfigError

CLIPPING = {"name": "guard", "_target_": "grpo_guard.clipping.clip.Clip", "high": 2e-6}


def write_run(folder: Path, proxy: list[float], **golds: list[float]) -> Path:
    """Write a run folder with an evaluation at every tenth iteration, and training between them."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"clipping": CLIPPING, "eval": {"prompts": 100}})
    )
    rows = [
        {"iteration": 10 * i + 5, "images": 8, "reward/ocr": 0.1, "reward/total": 0.1}
        for i in range(len(proxy))
    ]
    for i, value in enumerate(proxy):
        evaluated = {f"eval/gold/{name}": curve[i] for name, curve in golds.items()}
        rows.append({"iteration": 10 * i, "eval/proxy/ocr": value} | evaluated)
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


PROXY = [0.50, 0.40, 0.60, 0.56]


def test_golds_are_read_where_the_proxy_first_gained(tmp_path: Path) -> None:
    """The proxy passes .55 three quarters of the way to evaluation 2; its later fall is ignored."""
    folder = write_run(
        tmp_path / "a", PROXY, exact=[0.5, 0.4, 0.8, 0.1], clean=[2.0, 2.0, 1.0, 9.0]
    )
    assert search_objective(folder, gain=0.1) == pytest.approx((0.7 / 0.5 + 1.25 / 2.0) / 2)


def test_golds_without_a_ratio_and_plain_statistics_are_left_out(tmp_path: Path) -> None:
    golds = {
        "exact": [0.5, 0.4, 0.8, 0.1],
        "below": [-1.0, 2.0, 2.0, 2.0],
        "saturation": [1.0, 9.0, 9.0, 9.0],
    }
    assert search_objective(write_run(tmp_path / "a", PROXY, **golds), gain=0.1) == pytest.approx(
        1.4
    )
    assert (
        search_objective(write_run(tmp_path / "b", PROXY, below=golds["below"]), gain=0.1) is None
    )


def test_a_faster_run_of_the_same_curve_scores_the_same(tmp_path: Path) -> None:
    """The golds depend on the proxy alone, so it does not matter when the proxy is gained."""
    slow = [1.0, 1.02, 1.04, 1.06, 1.08]
    fast = [1.0, 1.08]
    scores = [
        search_objective(write_run(tmp_path / name, proxy, exact=[2 - p for p in proxy]))
        for name, proxy in (("slow", slow), ("fast", fast))
    ]
    assert scores == pytest.approx([0.95, 0.95])


def test_a_run_that_never_gains_enough_has_no_objective(tmp_path: Path) -> None:
    assert search_objective(write_run(tmp_path / "a", PROXY, exact=PROXY), gain=0.3) is None
    (tmp_path / "c").mkdir()
    assert search_objective(tmp_path / "c") is None


def test_a_gold_without_a_value_before_training_has_no_ratio(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", PROXY, exact=PROXY, facts=[0.1, 0.2, 0.2, 0.2])
    lines = (folder / "metrics.jsonl").read_text().replace('"eval/gold/facts": 0.1', '"a": 0')
    (folder / "metrics.jsonl").write_text(lines)
    assert search_objective(folder, gain=0.1) == pytest.approx(1.1)


def test_metrics_without_a_configuration(tmp_path: Path) -> None:
    (write_run(tmp_path / "a", PROXY, exact=PROXY) / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"a holds no config\.yaml; give a run folder"):
        search_objective(tmp_path / "a")


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ([], None),
        ([1.0], None),
        ([-2.0, 0.0], 0.5),
        ([0.0, 0.0, 1.0], 1.0),
        ([1.0, 1.5], 1.0),
        ([1.0, 1.4], None),
    ],
)
def test_crossings(values: list[float], at: float | None) -> None:
    assert first_crossing(np.array(values), 0.5) == at
