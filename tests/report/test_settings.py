"""Labels of runs, and the settings in which they differ."""

from __future__ import annotations

from typing import Any

import pytest

from grpo_guard.report.settings import differing_settings, label_runs


def clipping(name: str, ratio: str, weight: str, high: float = 1e-4) -> dict[str, Any]:
    return {
        "ratio": {"_target_": f"grpo_guard.ratio.log_ratio_{ratio}"},
        "weight": {"_target_": f"grpo_guard.clipping.weight.{weight}"},
        "name": name,
        "_target_": "grpo_guard.clipping.clip.Clip",
        "high": high,
    }


VANILLA = clipping("vanilla", "raw", "uniform")
GUARD = clipping("guard", "norm", "inverse_dt", 2e-6)
DPPO = {"name": "dppo", "_target_": "grpo_guard.clipping.dppo.Dppo", "divergence": 1e-6}


@pytest.mark.parametrize(
    ("configs", "labels"),
    [
        ([{"clipping": GUARD}], ("guard",)),
        ([{"clipping": DPPO}], ("dppo",)),
        ([{"clipping": VANILLA, "seed": 0}, {"clipping": GUARD, "seed": 0}], ("vanilla", "guard")),
        (
            [
                {"clipping": VANILLA, "seed": 0},
                {"clipping": GUARD, "seed": 0},
                {"clipping": GUARD, "seed": 1},
            ],
            ("vanilla", "guard, seed 0", "guard, seed 1"),
        ),
        (
            [{"clipping": GUARD, "seed": 0}, {"clipping": GUARD | {"high": 4e-6}, "seed": 1}],
            ("guard, clip 2e-6", "guard, clip 4e-6"),
        ),
        (
            [
                {"clipping": GUARD, "reward": {"_target_": f"rewards.{name}"}, "seed": 3}
                for name in ("OCR", "PickScore")
            ],
            ("guard, ocr", "guard, pickscore"),
        ),
        (
            [{"clipping": GUARD, "output": "a"}, {"clipping": GUARD, "output": "b"}],
            ("guard, one", "guard, two"),
        ),
    ],
)
def test_a_label_is_the_variant_and_what_tells_it_apart(configs: Any, labels: Any) -> None:
    assert label_runs(configs, ["one", "two", "three"][: len(configs)]) == labels


def test_labels_name_the_ratio_and_weight_of_a_changed_variant() -> None:
    uniform = clipping("guard", "norm", "uniform", 2e-6)
    raw = clipping("guard", "raw", "inverse_dt", 2e-6)
    configs = [{"clipping": GUARD}, {"clipping": uniform}]
    assert label_runs(configs, "ab") == ("guard, weight inverse_dt", "guard, weight uniform")
    configs = [{"clipping": GUARD}, {"clipping": raw}]
    assert label_runs(configs, "ab") == ("guard, ratio norm", "guard, ratio raw")


def group(*, shuffled: bool) -> dict[str, Any]:
    rule = {"_target_": "advantage.group.Group", "std": "group"}
    return {"rule": rule, "_target_": "advantage.shuffled.Shuffled"} if shuffled else rule


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_label_names_the_outer_component_in_whatever_order_runs_come(order: Any) -> None:
    configs = [{"clipping": GUARD, "advantage": group(shuffled=flag)} for flag in (True, False)]
    labels = ("guard, shuffled", "guard, group")
    labelled = label_runs([configs[i] for i in order], "ab")
    assert labelled == tuple(labels[i] for i in order)


def test_a_label_names_what_is_unusual_and_nothing_that_most_share() -> None:
    usual = {"clipping": VANILLA, "advantage": group(shuffled=False), "optim": {"lr": 1e-4}}
    configs = [
        usual | {"optim": {"lr": 3e-5}},
        usual | {"clipping": clipping("vanilla", "raw", "later_half")},
        usual | {"advantage": group(shuffled=True)},
        usual,
    ]
    assert label_runs(configs, "abcd") == (
        "vanilla, lr 3e-5",
        "vanilla, weight later_half",
        "vanilla, shuffled",
        "vanilla",
    )
    # without the usual arm, no other arm takes its short name
    assert label_runs(configs[:3], "abc")[0] == "vanilla, lr 3e-5"


def test_differences_leave_out_what_changes_no_result() -> None:
    a = {"clipping": VANILLA, "seed": 0, "output": "a", "strategy": {"device": "cpu"}}
    b = {"clipping": GUARD, "seed": 0, "output": "b", "strategy": {"device": "cuda"}, "extra": None}
    # a setting that is null counts as absent
    assert differing_settings([a, b, a]) == {
        "clipping.ratio._target_": ("log_ratio_raw", "log_ratio_norm", "log_ratio_raw"),
        "clipping.weight._target_": ("uniform", "inverse_dt", "uniform"),
        "clipping.name": ("vanilla", "guard", "vanilla"),
        "clipping.high": ("0.0001", "2e-6", "0.0001"),
    }


def test_checkpoints_and_resuming_are_no_difference() -> None:
    a = {"clipping": GUARD, "resume": "auto", "checkpoint": {"every": 5, "best": None}}
    b = {"clipping": GUARD, "resume": "never", "checkpoint": {"every": 50, "best": None}}
    assert differing_settings([a, b]) == {}
