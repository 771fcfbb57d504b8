"""The checker: real renders pass, also blurred; false captions, wrong counts, relations and spellings do not."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from grpo_guard.types import Clause, Prompt
from grpo_guard.world.captions import draw, prompts
from grpo_guard.world.checker import check, detect, statistics
from grpo_guard.world.layout import Scenes
from grpo_guard.world.render import paint, render
from grpo_guard.world.scene import COLORS, LEXICON, NAMES

EVERY = prompts(heldout=False) + prompts(heldout=True)


def pictures(asked, seed=0):
    drawn = render(asked, np.random.default_rng(seed))
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255


def scene(*things):
    """One picture of things (name, colour or word, size, x, y)."""
    names, details, sizes, xs, ys = zip(*things, strict=True)
    palette = list(COLORS)
    scenes = Scenes(
        kind=np.array([[*map(NAMES.index, names), -1, -1, -1, -1][:4]]),
        color=np.array(
            [
                [
                    palette.index(detail) if detail in COLORS else 0
                    for detail in (*details, *"....")
                ][:4]
            ]
        ),
        word=np.array(
            [
                [
                    LEXICON.index(detail) if detail in LEXICON else 0
                    for detail in (*details, *"....")
                ][:4]
            ]
        ),
        size=np.array([[(s, s) for s in (*sizes, 1, 1, 1, 1)][:4]], np.float32),
        center=np.array(
            [[*zip((*xs, 0, 0, 0, 0), (*ys, 0, 0, 0, 0), strict=True)][:4]], np.float32
        ),
    )
    return torch.from_numpy(paint(scenes, np.random.default_rng(0)))


def judge(image, *clauses):
    verdict = check(image, [Prompt(text="", include=clauses)])
    return round(verdict.facts.item(), 2), verdict.exact.item()


@pytest.fixture(scope="module")
def real():
    asked = draw(np.random.default_rng(1), 256, EVERY)
    return asked, pictures(asked)


def test_real_pictures_pass(real):
    verdict = check(real[1], real[0])
    assert verdict.exact.mean() >= 0.97
    assert verdict.facts.mean() >= 0.98
    assert verdict.clean.min() > 0.88


def test_blurred_and_noisy_pictures_pass(real):
    asked, images = real
    blurred = torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 0.7, 0.7)))
    noise = 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert check((blurred + noise).clamp(0, 1), asked).exact.mean() >= 0.9


def test_false_captions_fail(real):
    asked, images = real
    pairs = [
        (i, other) for i, other in enumerate(asked[7:] + asked[:7]) if other.text != asked[i].text
    ]
    rows = torch.tensor([i for i, _ in pairs])
    assert check(images[rows], [other for _, other in pairs]).exact.mean() <= 0.02


def test_every_word_is_read():
    asked = [p for p in EVERY if p.tag == "word"] * 2
    read = [[thing.text for thing in seen] for seen in detect(pictures(asked))]
    right = [texts == [prompt.include[0].text] for texts, prompt in zip(read, asked, strict=True)]
    assert np.mean(right) >= 0.98


def test_detection_reports_what_was_painted():
    (seen,) = detect(scene(("cross", "cyan", 20, 20, 22), ("triangle", "purple", 16, 46, 40)))
    assert {(thing.name, thing.color) for thing in seen} == {
        ("cross", "cyan"),
        ("triangle", "purple"),
    }
    boxes = {thing.name: thing.box for thing in seen}
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


def test_what_was_not_asked_for_spoils_only_exactness():
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
    red, blue = (
        Clause(name="circle", color="red", position=(relation, 1)),
        Clause(name="circle", color="blue"),
    )
    facts, exact = judge(image, red, blue)
    assert (facts, exact) == ((1, 1) if holds else (0.8, 0))


def test_words_are_judged_by_spelling_and_place():
    image = scene(("word", "stop", 40, 26, 28), ("square", "red", 14, 30, 54))
    stop = Clause(name="word", text="stop")
    square = Clause(name="square", color="red", position=("below", 1))
    assert judge(image, square, stop) == (1, 1)
    assert judge(image, square, Clause(name="word", text="open")) == (0.8, 0)
    assert judge(image, stop, Clause(name="square"))[1] == 1
    assert (
        judge(
            image,
            Clause(name="word", text="stop", position=("at the bottom", 0)),
            Clause(name="square"),
        )[1]
        == 0
    )
    image[:, :, 8:30, 24:32] = 1.0
    assert judge(image, square, stop) == (0.8, 0)


def test_noise_is_not_clean(real):
    asked, images = real[0][:50], real[1][:50]
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert (check(images, asked).clean - check(noisy.clamp(0, 1), asked).clean).min() > 0.1


def test_an_empty_picture_shows_nothing():
    blank = torch.full((2, 3, 64, 64), 0.95)
    assert detect(blank) == [(), ()]
    assert check(blank, [EVERY[0]] * 2).facts.tolist() == [0, 0]


def test_statistics_tell_extremes_apart_at_any_size():
    flat, black = torch.full((1, 3, 30, 50), 0.9), torch.zeros(1, 3, 30, 50)
    stripes = flat * (torch.arange(50) % 2)
    colors = torch.rand((1, 3, 30, 50), generator=torch.Generator().manual_seed(0))
    measured = statistics(torch.cat([flat, black, stripes, colors]))
    assert measured["dark_fraction"].tolist()[:3] == [0, 1, 0.5]
    assert measured["edge_density"].tolist()[:3] == [0, 0, 0.5]
    assert measured["saturation"].tolist()[:3] == [0, 0, 0]
    assert measured["saturation"][3] > 0.4
    assert measured["color_entropy"][0] == 0
    assert measured["color_entropy"][3] > 0.95
    assert measured["grid_energy"][2] > 0.99
    assert measured["grid_energy"][3] < 0.15


def test_a_patch_grid_shows_at_its_period():
    tiles = ((torch.arange(64) // 8) % 2).float().expand(1, 3, 64, 64)
    assert statistics(tiles, period=16)["grid_energy"] > 0.99
    assert statistics(tiles, period=4)["grid_energy"] < 0.01
