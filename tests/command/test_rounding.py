"""The benchmark that takes rounding apart."""

import torch

from grpo_guard.command.benches import rounding
from grpo_guard.command.benches.rounded_operations import SITES, RoundAt, round_mantissa

SMALL = ["data.prompts=2", "data.repeats=2", "microbatch=4", "steps=3", "backbone.guidance=1"]


def test_numbers_are_rounded_to_the_nearest_one():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_mantissa(x, 7), x.bfloat16().float())
    assert torch.equal(round_mantissa(x, 10), x.half().float())


def test_only_the_named_operations_are_rounded():
    x, y = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.functional.linear
    with RoundAt(["inputs of matrices"], 7):
        inputs, total = linear(x, y), x + y
    assert torch.equal(inputs, linear(x.bfloat16().float(), y.bfloat16().float()))
    assert torch.equal(total, x + y)
    with RoundAt(["results of matrices", "sums and products"], 7):
        results, total = linear(x, y), x + y
    assert torch.equal(results, linear(x, y).bfloat16().float())
    assert torch.equal(total, (x + y).bfloat16().float())


def test_the_derivative_is_right_where_differences_are_not():
    case = rounding.prepare_case(SMALL)
    by_name = {finding.name: finding for finding in rounding.compare_sites(case)}
    assert len(by_name) == len(SITES) + 7
    matrices = [
        by_name[f"  only inputs of matrices{suffix}"].velocity
        for suffix in (", TF32", "", ", float8")
    ]
    assert matrices == sorted(matrices)  # fewer bits, larger errors
    assert by_name["difference in float32"].log_ratio < 0.1
    for site in SITES:
        assert by_name[f"  only {site}"].log_ratio > 1
    assert by_name["difference in bfloat16"].log_ratio > 10
    for place in ("old weights", "middle"):
        assert by_name[f"derivative in bfloat16, {place}"].log_ratio < 0.2
    assert by_name["derivative in bfloat16, middle"].clipped == by_name["float64"].clipped
    table = rounding.make_site_table(list(by_name.values()))
    assert table.row_count == len(by_name)
