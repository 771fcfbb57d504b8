"""The table in a terminal, and as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import FALLING, LEVEL, RISING, make_run

from grpo_guard.report import analyse_runs, read_runs
from grpo_guard.report.notation import format_interval
from grpo_guard.report.summary import Cell, TableSection, summarise
from grpo_guard.report.table import FORMATS, MOST_WIDTH, _wrap_columns, format_terminal

HOSTILE = 'a|b & <i>"x"</i> 50% _{~}^\\ $1#'


@pytest.mark.parametrize("arms", [1, 3, 12])
def test_it_fits_the_terminal_whatever_the_number_of_arms(arms: int) -> None:
    runs = [make_run(optim={"lr": (i + 1) * 1e-5, "note": "long " * i}) for i in range(arms)]
    results = analyse_runs(runs)
    for columns, most in ((40, 80), (80, 80), (90, 90), (200, 100)):
        text = format_terminal(results, columns)
        assert max(map(len, text.splitlines())) <= most
        assert text.count("vanilla") >= arms


@pytest.mark.parametrize("columns", [80, 100])
def test_two_arms_stand_beside_each_other(columns: int) -> None:
    name = "largest / smallest spread, normalised ratio"
    cells = ("-0.0027 ± 0.0026", "+0.082 (+0.039 to +0.108)")
    rows = ((name, tuple(Cell(text=cell) for cell in cells)),)
    section = TableSection(title="Golds", rows=rows)
    lines = _wrap_columns(["vanilla", "guard"], [section], columns)
    [row] = [line for line in lines if cells[0] in line]
    assert cells[1] in row
    names = " ".join(line.replace(cells[0], "").replace(cells[1], "") for line in lines)
    assert name in " ".join(names.split())


def test_it_begins_with_the_answer(pair: tuple[Path, Path]) -> None:
    text = format_terminal(analyse_runs(read_runs(pair)))
    assert text.startswith("Is exact higher with guard than with vanilla? undecided. guard: proxy")
    assert "\nshows         The raw ratio's spread grows towards low noise\n" in text


def test_it_says_what_is_left_out_of_the_means() -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    short = make_run(seed=3, proxy=RISING[:2])
    runs = [replace(run, folder=Path(f"seed{i}")) for i, run in enumerate([*runs, short])]
    text = " ".join(format_terminal(analyse_runs(runs)).split())
    assert "Note: vanilla is left out of means and comparisons: its last evaluation" in text
    assert "Note: An arm has only 3 seeds" in text
    guard = [make_run("guard", seed=seed) for seed in range(3)]
    text = " ".join(format_terminal(analyse_runs([*runs[:3], *guard])).split())
    assert "Note: An arm has only 3 seeds" in text


def test_a_study_behind_answers_too() -> None:
    runs, study = (
        [make_run(v, seed=seed) for v in ("vanilla", "guard") for seed in seeds]
        for seeds in ([0], range(1, 5))
    )
    text = " ".join(format_terminal(analyse_runs(runs, study)).split())
    question = "Is facts higher with guard than with vanilla?"
    assert text.startswith(f"{question} undecided.")
    assert f"In the study behind: {question} " in text
    assert "(4 pairs of seeds, iteration 7)" in text
    other = [make_run(v, reward={"name": "other"}) for v in ("vanilla", "guard")]
    assert analyse_runs(other, study)[0].study is None


def test_every_format_has_every_cell(pair: tuple[Path, Path]) -> None:
    results = analyse_runs(read_runs(pair))
    rows = [row for section in summarise(results[0]) for row in section.texts]
    read = list(csv.DictReader(io.StringIO(FORMATS["csv"](results))))
    assert [row["text"] for row in read] == [cell for _, cells in rows for cell in cells]
    assert FORMATS["markdown"](results).count("\n| ") >= len(rows)
    latex = FORMATS["latex"](results)
    assert latex.count(" \\\\\n") >= len(rows)
    assert latex.isascii()


def test_csv_has_numbers_that_a_program_reads(pair: tuple[Path, Path]) -> None:
    runs = [
        make_run(v, golds={"facts": tuple(x + 0.01 * seed for x in golds)}, seed=seed)
        for v, golds in (("vanilla", FALLING), ("guard", LEVEL))
        for seed in range(4)
    ]
    [result] = analyse_runs(runs)
    rows = csv.DictReader(io.StringIO(FORMATS["csv"]([result])))
    cells = {(row["section"], row["quantity"], row["arm"]): row for row in rows}
    by_name = {(quantity, arm): row for (_, quantity, arm), row in cells.items()}

    def numbers(row: dict[str, str]) -> list[float | None]:
        return [float(row[key]) if row[key] else None for key in ("value", "low", "high")]

    difference = result.comparisons[0].golds["facts"].at_end
    assert numbers(by_name["facts, at the end", "guard"]) == [
        difference.value, difference.low, difference.high
    ]  # fmt: skip
    assert by_name["facts, at the end", "guard"]["text"] == format_interval(difference, signed=True)
    assert numbers(by_name["facts, at the end", "vanilla"]) == [None, None, None]
    assert numbers(by_name["objective", "guard"]) == [None, None, None]
    assert by_name["objective", "guard"]["text"] == "guard"
    assert numbers(by_name["seeds (which)", "guard"]) == [4, None, None]
    share = by_name["clipped below, of A < 0", "vanilla"]
    assert 100 * numbers(share)[0] == pytest.approx(float(share["text"].removesuffix(" %")), 0.01)
    mean = by_name["raw mean - 1, first trained step", "vanilla"]
    value, low, high = numbers(mean)
    middle, error = map(float, mean["text"].split(" ± "))
    assert value == pytest.approx(middle, rel=0.01)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.01)
    seconds = by_name["time of a run", "guard"]
    assert f"{numbers(seconds)[0]:.0f} s" == seconds["text"]


def test_names_cannot_break_out_of_a_table() -> None:
    results = analyse_runs([make_run(optim={"note": note}) for note in (HOSTILE, "plain")])
    for line in FORMATS["markdown"](results).splitlines():
        assert "<i>" not in line
        cells = line.replace("\\\\", "").replace("\\|", "")
        assert cells.count("|") in (0, 4)
    latex = FORMATS["latex"](results)
    assert "50\\% \\_\\{\\textasciitilde{}\\}" in latex
    rows = list(csv.reader(io.StringIO(FORMATS["csv"](results))))
    assert {len(row) for row in rows} == {8}
    assert any(HOSTILE in row[3] for row in rows)


def test_numbers_are_never_cut():
    """Both ends of a lopsided interval stay; heads are cut in their middle."""
    cell = "+0.031 (+0.008 to +0.043)"
    name = "largest / smallest spread, normalised ratio"
    section = TableSection(title="Golds", rows=((name, (Cell(text="-"), Cell(text=cell))),))
    text = "\n".join(
        _wrap_columns(["vanilla", "guard, " + 9 * "lr 0.0001 "], [section], MOST_WIDTH)
    )
    assert cell in text
    assert name in text
    assert "guard, lr 0" in text
    assert max(map(len, text.splitlines())) <= MOST_WIDTH
