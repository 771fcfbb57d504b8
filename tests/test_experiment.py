"""An experiment refuses settings that are out of range or do not fit each other."""

import functools
import re

import pytest
import torch
from toy import Data, experiment

from grpo_guard.schema import ConfigError
from grpo_guard.sde.flow import Flow
from grpo_guard.sde.ode import Ode
from grpo_guard.sde.window import Window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations=0 is not positive"),
        ({"updates": 0}, "updates=0 is not positive"),
        ({"microbatch": -1}, "microbatch=-1 is not positive"),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 is not positive"),
        ({"max_failed": 1.5}, "max_failed=1.5 is outside [0, 1]; it is a share of the images"),
        ({"max_failed": -0.5}, "max_failed=-0.5 is outside [0, 1]; it is a share of the images"),
        ({"steps": 1}, "steps=1 leaves no trained step; give 2 or more"),
        (
            {"sde": Ode()},
            "sde=ode has no noise, so there is no ratio to clip; choose sde=flow, dance or cps",
        ),
        (
            {"sde": Flow(level=0.7, window=Window(first=0, last=5))},
            "last=5 includes the last of 5 steps, which is never trained",
        ),
        (
            {"sde": Flow(level=0.7, window=Window(first=4))},
            "first=4 leaves no trained step of 5; give less than 4",
        ),
        (
            {"steps_per_sample": 5},
            "steps_per_sample=5 is outside 1..4, the trained steps; give null for all",
        ),
        (
            {"steps_per_sample": 0},
            "steps_per_sample=0 is outside 1..4, the trained steps; give null for all",
        ),
        (
            {"updates": 3},
            "data.repeats=8 = 32 samples do not divide into updates=3; nearest that does: 2",
        ),
        (
            {"microbatch": 24},
            "= 32 samples do not divide into microbatch=24; nearest that does: 16",
        ),
        (
            {"data": Data(repeats=6), "microbatch": 24, "steps_per_sample": 3},
            "36 rows per update (data.prompts=4 x data.repeats=6 = 24 samples, 3 steps each)"
            " do not divide into microbatch=24; nearest that does: 12",
        ),
        (
            {"optim": functools.partial(torch.optim.Adam, lr=-1.0)},
            "optim.lr=-1.0 is negative; give 0 or more",
        ),
        (
            {"optim": functools.partial(torch.optim.Adam, momentum=0.9)},
            "'momentum'); see conf/optim",
        ),
        (
            {"optim": functools.partial(torch.optim.AdamW, eps=0.0)},
            "optim makes weights NaN where their gradient is 0; give optim.eps=1e-8",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        experiment(**changes)
