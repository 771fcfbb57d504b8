"""The command line of compare.py: what it prints, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusing import check_refusal

from grpo_guard.command.compare import TABLES, main
from grpo_guard.report.table import FORMATS


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
    assert lines[1].split() == ["dppo"]
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


def test_a_damaged_folder_is_left_out_with_a_line(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "b" / "metrics.jsonl").write_text('{"iter')
    (bare / "notes.txt").write_text("no run")
    main([str(bare / "*")])
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"Left out: {bare}/b/metrics.jsonl holds no metrics yet")
    assert Path(output.out.splitlines()[-1]).is_file()


@pytest.mark.parametrize("words", [[], ["--table", "csv"]], ids=["page", "table"])
def test_a_damaged_part_is_a_line(
    bare: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "b" / "histograms.npz").write_text("torn")
    main([str(bare / "?"), *words])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: {bare}/b/histograms.npz cannot be read (")
    assert line.endswith(": the page lacks its histograms; restore the file")


@pytest.mark.parametrize("lost", ["config.yaml", "metrics.jsonl"])
def test_a_run_that_has_lost_its_main_file_is_left_out_with_a_line(
    bare: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "b" / lost).unlink()
    main([str(bare / "?")])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Left out: {bare}/b holds no {lost}; ")


def test_a_run_that_has_lost_both_main_files_is_not_passed_over(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for lost in ("config.yaml", "metrics.jsonl"):
        (bare / "b" / lost).unlink()
    (bare / "b" / "histograms.npz").write_text("")
    main([str(bare / "?")])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Left out: {bare}/b holds no config.yaml; ")


@pytest.mark.parametrize(
    ("style", "start"),
    [("markdown", "|  | dppo |"), ("latex", "\\begin{tabular}"), ("csv", "set,section,")],
)
def test_a_table_is_all_that_is_printed(
    bare: Path, style: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(bare / "?"), "--table", style])
    assert capsys.readouterr().out.startswith(start)
    assert not (bare / "compare").exists()


def test_every_format_is_a_choice() -> None:
    assert sorted(TABLES) == sorted(FORMATS)


def test_watching_ends_with_the_runs(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = '{"iteration": 0, "images": 8}\n'
    (bare / "a" / "metrics.jsonl").write_text(trained + '{"iteration": 1}\n')
    waits = []

    def finish(seconds: float) -> None:
        page = (bare / "compare" / "index.html").read_text(encoding="utf-8")
        assert '<meta http-equiv="refresh" content="7">' in page
        waits.append(seconds)
        (bare / "b" / "metrics.jsonl").write_text(trained + '{"iteration": 1}\n')

    monkeypatch.setattr("time.sleep", finish)
    main([str(bare / "?"), "--watch", "7"])
    assert waits == [7]
    assert "http-equiv" not in (bare / "compare" / "index.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("index.html") == 3


def test_a_table_has_nothing_behind_it(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(bare / "a"), "--table", "csv", "--behind", str(bare / "b")]
    check_refusal(main, words, "--behind belongs to the page", capsys)


def test_watching_needs_a_positive_number(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refusal(main, [str(bare / "a"), "--watch", "0"], "--watch=0", capsys)


@pytest.mark.parametrize(
    "rows",
    [
        '{"iteration": 0, "images": 8}\n{"iteration": 1, "eval/over_optimising": 1}\n',
        '{"iteration": 0, "images": 8}\n{"itera\n{"iteration": 9}\n',
    ],
    ids=["ended early", "torn line"],
)
def test_watching_ends_with_a_run_whose_last_row_is_its_end(
    bare: Path, rows: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (bare / "a" / "metrics.jsonl").write_text(rows)
    config = (bare / "a" / "config.yaml").read_text().replace("iterations: 1", "iterations: 9")
    (bare / "a" / "config.yaml").write_text(config)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    main([str(bare / "a"), "--watch"])
    assert capsys.readouterr().out.count("index.html") == 2
    html = (bare / "compare" / "index.html").read_text(encoding="utf-8")
    assert ("Ended early: dppo (1 of 9 iterations)." in html) == ("over" in rows)
    assert "Unfinished" not in html


def test_a_folder_that_is_no_run_is_no_match(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(bare / "*")])
    main([str(bare / "*")])
    assert (bare / "compare").is_dir()
    assert capsys.readouterr().err == ""


def test_notes_on_a_table_go_to_standard_error(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = '{"iteration": 0, "images": 8, "eval/proxy/p": 1}\n'
    for name in ("c", "d"):
        folder = bare / name
        folder.mkdir()
        config = (bare / "a" / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("seed: a", f"seed: {name}"))
        (folder / "metrics.jsonl").write_text(scores)
    main([str(bare / name) for name in "acd"] + ["--table", "csv"])
    printed = capsys.readouterr()
    assert printed.err == (
        "Note: dppo, seed a is left out of means and comparisons:"
        " it has no evaluation of the proxy.\n"
    )
    assert printed.out.startswith("set,section,quantity,arm,value,low,high,text\n")
