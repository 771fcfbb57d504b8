"""The checker accepts real renders, blurred ones too, and rejects false captions of every kind."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.captions import all_prompts, draw_captions
from grpo_guard.world.checker import check_pictures
from grpo_guard.world.detection import detect
from grpo_guard.world.layout import SLOTS, Scenes
from grpo_guard.world.render import paint, render
from grpo_guard.world.scene import LEXICON, SHAPE_COLORS, THINGS

EVERY = all_prompts(heldout=False) + all_prompts(heldout=True)


def pictures(prompts, seed=0):
    images = render(prompts, np.random.default_rng(seed))
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def scene(*things):
    """Paint one picture of things (name, colour or word, size, x, y)."""
    palette = list(SHAPE_COLORS)
    kind = np.full((1, SLOTS), -1)
    color, word = np.zeros((2, 1, SLOTS), int)
    size = np.ones((1, SLOTS, 2), np.float32)
    center = np.zeros((1, SLOTS, 2), np.float32)
    for slot, (name, detail, extent, x, y) in enumerate(things):
        kind[0, slot] = THINGS.index(name)
        if name == "word":
            word[0, slot] = LEXICON.index(detail)
        else:
            color[0, slot] = palette.index(detail)
        size[0, slot] = extent
        center[0, slot] = x, y
    scenes = Scenes(kind=kind, color=color, word=word, size=size, center=center)
    return torch.from_numpy(paint(scenes, np.random.default_rng(0)))


def judge(image, *clauses):
    check = check_pictures(image, [Prompt(text="", include=clauses)])
    return round(check.facts.item(), 2), check.exact.item()


@pytest.fixture(scope="module")
def real():
    prompts = draw_captions(np.random.default_rng(1), 256, EVERY)
    return prompts, pictures(prompts)


def test_real_pictures_pass(real):
    prompts, images = real
    check = check_pictures(images, prompts)
    assert check.exact.mean() >= 0.97
    assert check.facts.mean() >= 0.98
    assert check.clean.min() > 0.88


def test_blurred_and_noisy_pictures_pass(real):
    prompts, images = real
    blurred = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 0.7, 0.7)))
    noise = 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert check_pictures((blurred + noise).clamp(0, 1), prompts).exact.mean() >= 0.9


def test_false_captions_fail(real):
    prompts, images = real
    others = prompts[7:] + prompts[:7]
    rows = [i for i, other in enumerate(others) if other.text != prompts[i].text]
    check = check_pictures(images[torch.tensor(rows)], [others[i] for i in rows])
    assert check.exact.mean() <= 0.02


def test_every_word_is_read():
    prompts = [prompt for prompt in EVERY if prompt.tag == "word"] * 2
    texts = [[thing.text for thing in things] for things in detect(pictures(prompts))]
    words = [[prompt.include[0].text] for prompt in prompts]
    assert np.mean([text == word for text, word in zip(texts, words, strict=True)]) >= 0.98


def test_detection_reports_what_was_painted():
    (things,) = detect(scene(("cross", "cyan", 20, 20, 22), ("triangle", "purple", 16, 46, 40)))
    assert {(thing.name, thing.color) for thing in things} == {
        ("cross", "cyan"),
        ("triangle", "purple"),
    }
    boxes = {thing.name: thing.box for thing in things}
    assert np.allclose(boxes["cross"], (10, 12, 30, 32), atol=1.1)
    assert np.allclose(boxes["triangle"], (38, 32, 54, 48), atol=1.1)


def test_counts_and_colours_are_separate_facts():
    image = scene(
        ("circle", "red", 16, 14, 14), ("circle", "red", 16, 44, 14), ("circle", "blue", 16, 14, 46)
    )
    assert judge(image, Clause(name="circle", count=3)) == (1, 1)
    assert judge(image, Clause(name="circle", count=2)) == (0, 0)
    assert judge(image, Clause(name="circle", count=3, color="red")) == (0.5, 0)
    both = Clause(name="circle", count=2, color="red"), Clause(name="circle", color="blue")
    assert judge(image, *both) == (1, 1)


def test_an_extra_thing_spoils_only_exactness():
    image = scene(("circle", "red", 18, 16, 16), ("square", "green", 18, 46, 46))
    assert judge(image, Clause(name="circle", color="red")) == (1, 0)
    image[:, :, 40:60, 10:13] = 0.0
    assert judge(image, Clause(name="circle"), Clause(name="square")) == (1, 0)


@pytest.mark.parametrize(
    ("relation", "holds"),
    [("left of", True), ("right of", False), ("above", False), ("below", False)],
)
def test_relations_follow_the_offset(relation, holds):
    image = scene(("circle", "red", 18, 16, 30), ("circle", "blue", 18, 46, 36))
    red = Clause(name="circle", color="red", position=(relation, 1))
    blue = Clause(name="circle", color="blue")
    assert judge(image, red, blue) == ((1, 1) if holds else (0.8, 0))


def test_words_are_judged_by_spelling_and_place():
    image = scene(("word", "stop", 40, 26, 28), ("square", "red", 14, 30, 54))
    stop = Clause(name="word", text="stop")
    stop_at_the_bottom = Clause(name="word", text="stop", position=("at the bottom", 0))
    square = Clause(name="square", color="red", position=("below", 1))
    assert judge(image, square, stop) == (1, 1)
    assert judge(image, square, Clause(name="word", text="open")) == (0.8, 0)
    assert judge(image, stop, Clause(name="square"))[1] == 1
    assert judge(image, stop_at_the_bottom, Clause(name="square"))[1] == 0
    image[:, :, 8:30, 24:32] = 1.0
    assert judge(image, square, stop) == (0.8, 0)


def test_noise_is_not_clean(real):
    prompts, images = real[0][:50], real[1][:50]
    noise = 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images + noise).clamp(0, 1)
    clean, soiled = (check_pictures(pixels, prompts).clean for pixels in (images, noisy))
    assert (clean - soiled).min() > 0.1


def test_an_empty_picture_shows_nothing():
    blank = torch.full((2, 3, 64, 64), 0.95)
    assert detect(blank) == [(), ()]
    assert check_pictures(blank, [EVERY[0]] * 2).facts.tolist() == [0, 0]
