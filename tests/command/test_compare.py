"""The command line of compare.py: what it prints, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusing import check_refusal

from grpo_guard.command.compare import main


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Write two runs that have measured nothing."""
    for name in ("a", "b"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            f"{{clipping: {{name: dppo}}, iterations: 1, steps: 4, seed: {name}}}"
        )
        (folder / "metrics.jsonl").write_text('{"iteration": 0, "images": 8}\n')
    return tmp_path / "runs"


def test_it_prints_a_table_and_then_the_page(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(bare / "?")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[-1] == "dppo, seed b"
    assert lines[-1] == str(bare / "compare" / "index.html")
    assert Path(lines[-1]).is_file()
    assert any(line.startswith("not measured") for line in lines)
    assert "".join(lines).isascii() or "±" in "".join(lines)


def test_out_chooses_the_folder(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(bare / "a"), "--out", str(tmp_path / "elsewhere")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "elsewhere" / "index.html")


@pytest.mark.parametrize("pattern", ["nowhere", "no*where", "."])
def test_bad_input_is_one_line_and_2(
    pattern: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refusal(main, [pattern], pattern, capsys)
