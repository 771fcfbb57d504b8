"""The workspace and the report show the keys of the runs, by section, grouped by arm."""

import json
import sys
from pathlib import Path

import pytest
import wandb

from grpo_guard.command import wandb_report

pytest.importorskip("wandb_workspaces")
KEYS = [
    "iteration", "eval/gold/exact", "eval/gold/facts", "eval/proxy/ocr", "eval/over_optimising",
    "ratio_own/std/00", "ratio_own/std/01", "ratio_raw/std/00", "clip/high_pos_adv/00",
    "clip/low_neg_adv/00", "reward/total",
]  # fmt: skip


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield
    wandb.teardown()


def panels(sections):
    return {
        section["name"]: [panel["config"] for panel in section["panels"]] for section in sections
    }


def test_offline_it_writes_what_it_would_send(tmp_path, monkeypatch, offline, capsys):
    run = tmp_path / "run"
    run.mkdir()
    row = {"iteration": 0, **dict.fromkeys(KEYS[1:], 0.5)}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["wandb_report", str(run), "--out", str(tmp_path / "out")])
    wandb_report.main()
    files = capsys.readouterr().out.split()
    assert files == [str(tmp_path / "out" / f"{name}.json") for name in ("workspace", "report")]
    workspace, report = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files)
    by_section = panels(workspace["spec"]["section"]["panelBankConfig"]["sections"])
    golds = by_section["Gold against proxy, by arm"]
    assert [(p["xAxis"], p["metrics"]) for p in golds[:2]] == [
        ("eval/proxy/ocr", ["eval/gold/exact"]),
        ("eval/proxy/ocr", ["eval/gold/facts"]),
    ]
    assert len(by_section["Spread of the optimised ratio by step"]) == 2
    assert [p["metrics"] for p in by_section["Clip above the range, A > 0"]] == [
        ["clip/high_pos_adv/00"]
    ]
    assert [p["mediaKeys"] for p in by_section["Pictures and ridgelines"]] == [
        ["samples"],
        ["ratios"],
    ]
    assert "Spread of the RatioNorm by step" not in by_section
    text = json.dumps(workspace)
    assert '"name": "group"' in text
    assert all(name in json.dumps(report) for name in by_section)


def test_runs_without_numbers_are_refused(tmp_path, monkeypatch, offline, capsys):
    monkeypatch.setattr(sys, "argv", ["wandb_report", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_code:
        wandb_report.main()
    assert exit_code.value.code == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
