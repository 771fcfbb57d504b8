"""Colours that distinguish arms for colour-blind readers too."""

import itertools

import numpy as np
import pytest

from grpo_guard.report.theme import ARM_COLORS, line_color, line_marker

PAPER = ("#ffffff", "#15191e")
CONES = {
    "all": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
"""What is seen of linear RGB without one kind of cones (Machado, Oliveira and Fernandes, 2009)."""
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color):
    value = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Convert linear RGB to CIELAB under D65, except for colours so dark that none is in use."""
    x, y, z = np.cbrt(XYZ @ np.clip(rgb, 1e-3, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("cones", CONES)
@pytest.mark.parametrize("mode", [0, 1])
def test_colours_of_arms_are_distinct(mode, cones):
    """A distance of 2 is barely visible side by side; 15 separates black from a dark grey."""
    points = [lab(np.array(CONES[cones]) @ linear(colors[mode])) for colors in ARM_COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)) > 15


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_of_arms_stand_out_from_the_paper(mode):
    """The contrast is at least 3, as WCAG requires for graphics."""
    paper = XYZ[1] @ linear(PAPER[mode]) + 0.05
    luminances = [XYZ[1] @ linear(colors[mode]) + 0.05 for colors in ARM_COLORS]
    assert min(max(paper, y) / min(paper, y) for y in luminances) > 3


def test_every_arm_has_its_own_style():
    assert len({line_color(index) for index in range(8)}) == 8
    assert len({(line_color(index), line_marker(index)) for index in range(56)}) == 56
