"""The exact checker as a reward passes real renders and fails broken images."""

import numpy as np
import torch

from grpo_guard.reward.checker import WorldChecker
from grpo_guard.types import Clause, Prompt
from grpo_guard.world import captions, render


def test_real_renders_are_exact_and_a_broken_image_fails():
    rng = np.random.default_rng(0)
    prompts = captions.draw_captions(rng, 40, captions.all_prompts(heldout=False))
    images = torch.from_numpy(render.render(prompts, rng)).permute(0, 3, 1, 2).float() / 255
    images[0, 0, 0, 0] = torch.nan
    scores = WorldChecker().load(torch.device("cpu"))(images, prompts)
    assert list(scores.parts) == ["exact", "facts", "clean"]
    assert scores.total[1:].mean() > 0.95
    assert scores.parts["facts"][1:].mean() > 0.95
    assert scores.failed.tolist() == [True] + [False] * 39
    assert all(part[0].isnan() for part in scores.parts.values())


def test_notes_say_what_is_wrong():
    """Each line is about another prompt than the one that was drawn."""
    world = {p.text: p for p in captions.all_prompts(heldout=False)}
    drawn = "a red circle"
    picture = torch.from_numpy(render.render([world[drawn]] * 5, np.random.default_rng(0)))
    images = picture.permute(0, 3, 1, 2).float() / 255
    requests = [drawn, "a blue circle", "a red square", "two red circles", 'the word "stop"']
    prompts = [world.get(text) or make_word(text) for text in requests]
    assert WorldChecker().load(torch.device("cpu"))(images, prompts).notes == (
        (),
        ("no blue circle",),
        ("no red square",),
        ("circle: 1 instead of 2", "red circle: 1 instead of 2"),
        ("no word", '"stop" is not written'),
    )


def make_word(text):
    """Return a prompt for a word."""
    clause = Clause(name="word", count=1, text=text.split('"')[1])
    return Prompt(text=text, include=(clause,))


def test_free_text_is_not_accepted():
    assert not WorldChecker().accepts(Prompt(text="a cup"))
    assert all(map(WorldChecker().accepts, captions.all_prompts(heldout=True)))
