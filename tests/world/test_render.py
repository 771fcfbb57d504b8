"""The renderer: reproducible pictures whose scenes obey their captions."""

import numpy as np
import pytest

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.captions import draw, prompts
from grpo_guard.world.layout import GAP, MARGIN, arrange
from grpo_guard.world.render import render
from grpo_guard.world.scene import COLORS, RELATIONS, SHAPES, SIZE, USUAL

PROMPTS = draw(np.random.default_rng(0), 200, prompts(heldout=False))


def test_a_seed_fixes_every_pixel():
    first, again, other = (render(PROMPTS[:20], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (20, SIZE, SIZE, 3)
    assert (first == again).all()
    assert (first != other).any()


def test_nothing_touches_the_edge_or_another_thing():
    scenes = arrange(PROMPTS, np.random.default_rng(3))
    present = scenes.kind >= 0
    for size, center in (
        (scenes.size[i][there], scenes.center[i][there]) for i, there in enumerate(present)
    ):
        assert (center - size / 2 >= MARGIN - 0.51).all()
        assert (center + size / 2 <= SIZE - MARGIN + 0.51).all()
        gaps = (
            np.abs(center[:, None] - center)
            - (size[:, None] + size) / 2
            + 1e3 * np.eye(len(size))[..., None]
        )
        assert (gaps.max(-1) >= GAP - 1e-4).all()


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_hold_by_clear_distance(relation):
    a, b = Clause(name="circle", position=(relation, 1)), Clause(name="square")
    scenes = arrange([Prompt(text="", include=(a, b))] * 50, np.random.default_rng(4))
    along = ((scenes.center[:, 0] - scenes.center[:, 1]) * RELATIONS[relation]).sum(1)
    assert (along >= scenes.size[:, :2, 0].mean(1) + GAP - 1e-4).all()


def test_shapes_whose_colour_is_left_open_have_their_usual_one():
    prompts = [p for p in PROMPTS if p.tag == "two_object"]
    scenes = arrange(prompts, np.random.default_rng(5))
    painted = [[list(COLORS)[color] for color in row[:2]] for row in scenes.color]
    assert painted == [[USUAL[clause.name] for clause in prompt.include] for prompt in prompts]
    assert len(set(USUAL.values())) == len(SHAPES)
