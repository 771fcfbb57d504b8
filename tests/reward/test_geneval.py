"""GenEval against a table worked out by hand, and on real renders."""

import numpy as np
import pytest
import torch

from grpo_guard.reward.geneval import GenEval
from grpo_guard.reward.world_detector import WorldDetector
from grpo_guard.types import Clause, Prompt, component
from grpo_guard.world import captions, render
from grpo_guard.world.checker import Detection

CPU = torch.device("cpu")


def thing(name, color="red", x=50, y=50, score=0.9):
    return Detection(name=name, color=color, box=(x - 5.0, y - 5.0, x + 5.0, y + 5.0), score=score)


def cups(count, color="red"):
    return [thing("cup", color, x=10 + 12 * i) for i in range(count)]


CUP, DOG = Clause(name="cup"), Clause(name="dog")
RED_CUP, BLUE_CUP = Clause(name="cup", color="red"), Clause(name="cup", color="blue")
THREE = Clause(name="cup", count=3)
THREE_RED = Clause(name="cup", count=3, color="red")
LEFT = Clause(name="cup", position=("left of", 1))
FOUR_EXCLUDED = Clause(name="cup", count=4)
NEAR_DOG = thing("dog", x=58, y=50)

# what is asked for, what is excluded, what is there -> graded, strict, benchmark accuracy
TABLE = {
    "there": ([CUP], [], cups(1), 1, 1, 1),
    "not there": ([CUP], [], [thing("dog")], 0, 0, 0),
    "nothing there": ([CUP], [], [], 0, 0, 0),
    "exact number": ([THREE], [], cups(3), 1, 1, 1),
    "one under": ([THREE], [], cups(2), 2 / 3, 0, 0),
    "one over": ([THREE], [], cups(4), 2 / 3, 0, 1),
    "far over": ([THREE], [], cups(9), 0, 0, 1),
    "one over, excluded": ([THREE], [FOUR_EXCLUDED], cups(4), (2 / 3 + 0) / 2, 0, 0),
    "exact, not excluded": ([THREE], [FOUR_EXCLUDED], cups(3), 1, 1, 1),
    "excluded object": ([CUP], [DOG], [*cups(1), thing("dog")], 1 / 2, 0, 0),
    "something else too": ([CUP], [], [*cups(1), thing("dog")], 1, 1, 1),
    "one of two": ([CUP, DOG], [], cups(1), 1 / 2, 0, 0),
    "right colour": ([RED_CUP], [], cups(1), 1, 1, 1),
    "wrong colour": ([RED_CUP], [], cups(1, "blue"), 1 / 2, 0, 0),
    "one of three colours wrong": ([THREE_RED], [], [*cups(2), thing("cup", "blue")], (1 + 2 / 3) / 2, 0, 0),
    "surest is right": ([RED_CUP], [], [thing("cup", "blue", score=0.5), thing("cup")], (0 + 1) / 2, 0, 1),
    "surest is wrong": ([RED_CUP], [], [thing("cup", "blue"), thing("cup", score=0.5)], (0 + 1) / 2, 0, 0),
    "colours of one kind": ([RED_CUP, BLUE_CUP], [], [*cups(1), thing("cup", "blue")], 1, 1, 1),
    "colours of one kind, alike": ([RED_CUP, BLUE_CUP], [], cups(2), (1 + 0 + 1 + 0) / 4, 0, 0),
    "left of": ([LEFT, DOG], [], [thing("cup", x=20), thing("dog")], 1, 1, 1),
    "swapped": ([LEFT, DOG], [], [thing("cup", x=80), thing("dog")], 2 / 3, 0, 0),
    "too close": ([LEFT, DOG], [], [thing("cup", x=56.5), NEAR_DOG], 2 / 3, 0, 0),
    "beyond the margin": ([LEFT, DOG], [], [thing("cup", x=53), NEAR_DOG], 1, 1, 1),
    "rather above": ([LEFT, DOG], [], [thing("cup", x=30, y=10), thing("dog")], 2 / 3, 0, 0),
    "no anchor": ([LEFT, DOG], [], [thing("cup", x=20)], 1 / 3, 0, 0),
    "one of the cups is right of": (
        [LEFT, DOG],
        [],
        [thing("cup", x=20), thing("cup", x=80), thing("dog")],
        1 / 3,
        0,
        1,
    ),
}


@component
class Stub:
    """Sees what it is told."""

    things: list

    def load(self, device):
        return lambda images: self.things


@pytest.mark.parametrize("case", TABLE)
def test_table(case):
    include, exclude, seen, graded, strict, accuracy = TABLE[case]
    prompt = Prompt(text="", include=tuple(include), exclude=tuple(exclude))
    image, stub = torch.zeros(1, 3, 4, 4), Stub(things=[seen])
    scores = GenEval(detector=stub, strict=False).load(CPU)(image, [prompt])
    assert list(scores.parts) == ["geneval", "geneval_accuracy"]
    assert scores.total.item() == pytest.approx(graded)
    assert scores.parts["geneval_accuracy"].item() == accuracy
    assert GenEval(detector=stub, strict=True).load(CPU)(image, [prompt]).total.item() == strict


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_relations(relation):
    spots = {"left of": (20, 50), "right of": (80, 50), "above": (50, 20), "below": (50, 80)}
    prompt = Prompt(text="", include=(Clause(name="cup", position=(relation, 1)), DOG))
    for name, (x, y) in spots.items():
        seen = [thing("cup", x=x, y=y), thing("dog")]
        scores = GenEval(detector=Stub(things=[seen]), strict=True).load(CPU)(torch.zeros(1, 3, 4, 4), [prompt])
        assert scores.total.item() == (name == relation)


def test_prompts_it_cannot_judge_are_not_accepted():
    reward = GenEval(detector=WorldDetector(), strict=False)
    tags = {p.tag for p in captions.prompts(heldout=False) if reward.accepts(p)}
    six = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert six < tags <= six | {"mixture"}
    assert not any(reward.accepts(p) for p in captions.prompts(heldout=False) if '"' in p.text)
    assert not reward.accepts(Prompt(text="a photo of a cup"))
    assert not reward.accepts(Prompt(text="", include=(Clause(name="cup", position=("behind", 1)), DOG)))


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(5)
    prompts = captions.draw(rng, 120, captions.prompts(("shapes",), heldout=False))
    return prompts, torch.from_numpy(render.render(prompts, rng)).permute(0, 3, 1, 2).float() / 255


def test_real_renders_are_right(drawn):
    prompts, images = drawn
    score = GenEval(detector=WorldDetector(), strict=False, name="objects").load(CPU)
    scores = score(images, prompts)
    assert scores.total.mean() > 0.98
    assert scores.parts["objects_accuracy"].mean() > 0.97
    assert score(images.roll(1, 0), prompts).total.mean() < 0.5


def test_an_image_with_nan_fails(drawn):
    prompts, images = drawn
    images = images[:3].clone()
    images[1, 0, 0, 0] = torch.inf
    scores = GenEval(detector=WorldDetector(), strict=False).load(CPU)(images, prompts[:3])
    assert scores.failed.tolist() == [False, True, False]
    assert scores.parts["geneval_accuracy"].isnan().tolist() == [False, True, False]
