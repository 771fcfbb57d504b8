"""The renderer: pictures are reproducible, and their scenes obey their captions."""

import numpy as np
import pytest

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.captions import all_prompts, draw_captions
from grpo_guard.world.layout import EDGE_MARGIN, GAP, arrange
from grpo_guard.world.render import render
from grpo_guard.world.scene import RELATIONS, SHAPE_COLORS, SHAPES, SIZE, USUAL_COLORS

PROMPTS = draw_captions(np.random.default_rng(0), 200, all_prompts(heldout=False))


def test_a_seed_fixes_every_pixel():
    first, again, other = (render(PROMPTS[:20], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (20, SIZE, SIZE, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_nothing_touches_the_edge_or_another_thing():
    scenes = arrange(PROMPTS, np.random.default_rng(3))
    for size, center, present in zip(scenes.size, scenes.center, scenes.kind >= 0, strict=True):
        size, center = size[present], center[present]
        assert (center - size / 2 >= EDGE_MARGIN - 0.51).all()
        assert (center + size / 2 <= SIZE - EDGE_MARGIN + 0.51).all()
        gaps = np.abs(center[:, None] - center) - (size[:, None] + size) / 2
        gaps += 1e3 * np.eye(len(size))[..., None]
        assert (gaps.max(-1) >= GAP - 1e-4).all()


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_hold_by_clear_distance(relation):
    a, b = Clause(name="circle", position=(relation, 1)), Clause(name="square")
    scenes = arrange([Prompt(text="", include=(a, b))] * 50, np.random.default_rng(4))
    along = ((scenes.center[:, 0] - scenes.center[:, 1]) * RELATIONS[relation]).sum(1)
    assert (along >= scenes.size[:, :2, 0].mean(1) + GAP - 1e-4).all()


def test_a_shape_without_a_colour_in_its_caption_has_its_usual_one():
    prompts = [prompt for prompt in PROMPTS if prompt.tag == "two_object"]
    scenes = arrange(prompts, np.random.default_rng(5))
    painted = [[list(SHAPE_COLORS)[color] for color in row[:2]] for row in scenes.color]
    usual = [[USUAL_COLORS[clause.name] for clause in prompt.include] for prompt in prompts]
    assert painted == usual
    assert len(set(USUAL_COLORS.values())) == len(SHAPES)
