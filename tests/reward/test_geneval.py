"""GenEval against a table worked out by hand, and on real renders."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import Data, Grey, experiment

from grpo_guard import assets
from grpo_guard.data import Split
from grpo_guard.data.geneval import parse_geneval
from grpo_guard.reward.geneval import GenEval, explain_demands
from grpo_guard.reward.world_detector import WorldDetector
from grpo_guard.schema import ConfigError, component
from grpo_guard.train import train
from grpo_guard.types import Clause, Prompt
from grpo_guard.world import captions, render
from grpo_guard.world.detection import Detection
from grpo_guard.world.layout import SLOTS, Scenes
from grpo_guard.world.scene import SHAPE_COLORS, SHAPES

CPU = torch.device("cpu")
PROMPTS = Path(assets.__file__).parent / "prompts"


def thing(name, color="red", x=50, y=50, score=0.9, half=5.0):
    return Detection(
        name=name, color=color, box=(x - half, y - half, x + half, y + half), score=score
    )


def cups(count, color="red"):
    return [thing("cup", color, x=10 + 12 * i) for i in range(count)]


CUP, DOG = Clause(name="cup"), Clause(name="dog")
RED_CUP, BLUE_CUP = Clause(name="cup", color="red"), Clause(name="cup", color="blue")
THREE = Clause(name="cup", count=3)
THREE_RED = Clause(name="cup", count=3, color="red")
LEFT = Clause(name="cup", position=("left of", 1))
FOUR_EXCLUDED = Clause(name="cup", count=4)
NEAR_DOG = thing("dog", x=58, y=50)

# included clauses, excluded clauses, detections -> graded, strict, benchmark accuracy
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
    "one of three colours wrong": (
        [THREE_RED],
        [],
        [*cups(2), thing("cup", "blue")],
        (1 + 2 / 3) / 2,
        0,
        0,
    ),
    "surest is right": (
        [RED_CUP],
        [],
        [thing("cup", "blue", score=0.5), thing("cup")],
        (0 + 1) / 2,
        0,
        1,
    ),
    "surest is wrong": (
        [RED_CUP],
        [],
        [thing("cup", "blue"), thing("cup", score=0.5)],
        (0 + 1) / 2,
        0,
        0,
    ),
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
    """Detects these things."""

    things: list

    weight_bytes = 0

    def load(self, device):
        return lambda images: self.things


def check_measures(detector, image, prompt, **expected):
    """Each measure makes the total, and the benchmark's accuracy is reported beside all of them."""
    for measure, total in expected.items():
        scores = GenEval(detector=detector, measure=measure).load(CPU)(image, [prompt])
        assert list(scores.parts) == ["geneval", "geneval_accuracy"]
        assert scores.total.item() == pytest.approx(total)
        assert scores.parts["geneval_accuracy"].item() == expected["accuracy"]


@pytest.mark.parametrize("case", TABLE)
def test_table(case):
    include, exclude, seen, graded, strict, accuracy = TABLE[case]
    prompt = Prompt(text="", include=tuple(include), exclude=tuple(exclude))
    image, stub = torch.zeros(1, 3, 4, 4), Stub(things=[seen])
    check_measures(stub, image, prompt, graded=graded, strict=strict, accuracy=accuracy)


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_relations(relation):
    spots = {"left of": (20, 50), "right of": (80, 50), "above": (50, 20), "below": (50, 80)}
    prompt = Prompt(text="", include=(Clause(name="cup", position=(relation, 1)), DOG))
    for name, (x, y) in spots.items():
        seen = [thing("cup", x=x, y=y), thing("dog")]
        scores = GenEval(detector=Stub(things=[seen]), measure="strict").load(CPU)(
            torch.zeros(1, 3, 4, 4), [prompt]
        )
        assert scores.total.item() == (name == relation)


RED_CIRCLE, TWO = Clause(name="circle", color="red"), Clause(name="circle", count=2)
THREE_EXCLUDED = Clause(name="circle", count=3)
CIRCLE_LEFT, SQUARE = Clause(name="circle", position=("left of", 1)), Clause(name="square")
LEFT_SPOT, RIGHT_SPOT, LOW_SPOT = (14, 20), (48, 20), (32, 48)

# included clauses, excluded clauses, shapes by their spots -> graded, strict, benchmark accuracy
DRAWN = {
    "exact": ([TWO], [], {LEFT_SPOT: "red circle", RIGHT_SPOT: "blue circle"}, 1, 1, 1),
    "under": ([TWO], [], {LEFT_SPOT: "red circle", RIGHT_SPOT: "red cross"}, 1 / 2, 0, 0),
    "over": (
        [TWO],
        [],
        {LEFT_SPOT: "red circle", RIGHT_SPOT: "red circle", LOW_SPOT: "red circle"},
        1 / 2,
        0,
        1,
    ),
    "over and excluded": (
        [TWO],
        [THREE_EXCLUDED],
        {LEFT_SPOT: "red circle", RIGHT_SPOT: "red circle", LOW_SPOT: "red circle"},
        1 / 4,
        0,
        0,
    ),
    "colour": ([RED_CIRCLE], [], {LEFT_SPOT: "red circle"}, 1, 1, 1),
    "wrong colour": ([RED_CIRCLE], [], {LEFT_SPOT: "green circle"}, 1 / 2, 0, 0),
    "relation": (
        [CIRCLE_LEFT, SQUARE],
        [],
        {LEFT_SPOT: "red circle", RIGHT_SPOT: "blue square"},
        1,
        1,
        1,
    ),
    "swapped": (
        [CIRCLE_LEFT, SQUARE],
        [],
        {LEFT_SPOT: "blue square", RIGHT_SPOT: "red circle"},
        2 / 3,
        0,
        0,
    ),
    "excluded object": (
        [RED_CIRCLE],
        [SQUARE],
        {LEFT_SPOT: "red circle", RIGHT_SPOT: "blue square"},
        2 / 3,
        0,
        0,
    ),
}


def paint_shapes(drawn):
    """Paint shapes of 14 px at these spots; returns the picture and perfect detections."""
    free = SLOTS - len(drawn)
    colors, names = zip(*(text.split() for text in drawn.values()), strict=True)
    scenes = Scenes(
        kind=np.array([[*map(SHAPES.index, names), *[-1] * free]]),
        color=np.array([[*map(list(SHAPE_COLORS).index, colors), *[0] * free]]),
        word=np.zeros((1, SLOTS), int),
        size=np.full((1, SLOTS, 2), 14, np.float32),
        center=np.array([[*drawn, *[(0, 0)] * free]], np.float32),
    )
    true = [
        thing(name, color, x, y, half=7.0)
        for (x, y), color, name in zip(drawn, colors, names, strict=True)
    ]
    return torch.from_numpy(render.paint(scenes, np.random.default_rng(0))), true


@pytest.mark.parametrize("case", DRAWN)
@pytest.mark.parametrize("detector", ["true boxes", "the world's"])
def test_drawn_scenes(case, detector):
    include, exclude, drawn, graded, strict, accuracy = DRAWN[case]
    image, true = paint_shapes(drawn)
    prompt = Prompt(text="", include=tuple(include), exclude=tuple(exclude))
    eyes = Stub(things=[true]) if detector == "true boxes" else WorldDetector()
    check_measures(eyes, image, prompt, graded=graded, strict=strict, accuracy=accuracy)


EXPLAINED = {
    "exact number": ["1.00 3 cup: saw 3"],
    "one under": ["0.67 3 cup: saw 2, 1 missing"],
    "one over, excluded": ["0.67 3 cup: saw 4, 1 too many", "0.00 fewer than 4 cup: saw 4"],
    "not there": ["0.00 1 cup: saw 0, 1 missing"],
    "wrong colour": ["1.00 1 cup: saw 1", "0.00 1 red cup: saw 1 blue, 1 missing"],
    "one of three colours wrong": [
        "1.00 3 cup: saw 3",
        "0.67 3 red cup: saw 2 red, 1 blue, 1 missing",
    ],
    "left of": ["1.00 1 cup: saw 1", "1.00 cup left of dog: saw left of", "1.00 1 dog: saw 1"],
    "swapped": ["1.00 1 cup: saw 1", "0.00 cup left of dog: saw right of", "1.00 1 dog: saw 1"],
    "too close": [
        "1.00 1 cup: saw 1",
        "0.00 cup left of dog: saw no clear side",
        "1.00 1 dog: saw 1",
    ],
    "no anchor": [
        "1.00 1 cup: saw 1",
        "0.00 cup left of dog: saw no dog",
        "0.00 1 dog: saw 0, 1 missing",
    ],
    "excluded object": ["1.00 1 cup: saw 1", "0.00 fewer than 1 dog: saw 1"],
    "colours of one kind, alike": [
        "1.00 2 cup: saw 2",
        "0.00 1 red cup: saw 2 red, 1 too many",
        "0.00 1 blue cup: saw 2 red, 1 missing",
    ],
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_every_demand_is_explained(case):
    include, exclude, seen, *_ = TABLE[case]
    assert (
        explain_demands(Prompt(text="", include=tuple(include), exclude=tuple(exclude)), seen)
        == EXPLAINED[case]
    )


def test_the_notes_of_each_picture_name_what_was_missed():
    prompts = [Prompt(text="", include=(CUP, DOG)), Prompt(text="", include=(THREE,))]
    scores = GenEval(detector=Stub(things=[cups(1), cups(2)])).load(CPU)(
        torch.zeros(2, 3, 4, 4), prompts
    )
    assert scores.notes == (
        ("1.00 1 cup: saw 1", "0.00 1 dog: saw 0, 1 missing"),
        ("0.67 3 cup: saw 2, 1 missing",),
    )


@component
class Blind:
    """Detects a cup in every picture, and never a dog."""

    weight_bytes = 0

    def load(self, device):
        return lambda images: [cups(1) for _ in images]


@component
class Pets(Data):
    """One prompt about a cup and one about a dog."""

    def load(self):
        prompts = (Prompt(text="a cup", include=(CUP,)), Prompt(text="a dog", include=(DOG,)))
        return Split(train=prompts, heldout=prompts)


def test_evaluations_write_the_notes_of_each_picture(tmp_path):
    """Only evaluations keep notes; training drops them."""
    reward = GenEval(detector=Blind(), measure="strict")
    exp = experiment(tmp_path, data=Pets(), reward=reward, iterations=2)
    train(
        replace(
            exp,
            eval=replace(exp.eval, prompts=4, pictures=3, gold={"bright": Grey(), "other": reward}),
        ),
        {},
    )
    for iteration in (0, 2):
        pictures = json.loads(
            (tmp_path / "samples" / f"{iteration:06d}.json").read_text(encoding="utf-8")
        )
        captions = (tmp_path / "samples" / "captions.txt").read_text(encoding="utf-8").splitlines()
        assert [picture["prompt"] for picture in pictures] == captions
        assert set(captions) == {"a cup", "a dog"}
        for picture in pictures:
            right = picture["prompt"] == "a cup"
            line = "1.00 1 cup: saw 1" if right else "0.00 1 dog: saw 0, 1 missing"
            assert picture["notes"] == {"eval/proxy": [line], "eval/gold/other": [line]}
            assert picture["scores"]["eval/proxy/geneval"] == right
            assert -1 < picture["scores"]["eval/gold/grey"] < 0


@pytest.mark.parametrize(
    ("tag", "counting", "graded", "accuracy"),
    [
        ("counting", 0.0, 1 / 2, 1),
        ("counting", 0.86, 1, 1),
        ("counting", 0.9, 1 / 2, 0),
        ("colors", 0.9, 1 / 2, 1),
    ],
)
def test_only_certain_objects_are_counted(tag, counting, graded, accuracy):
    seen = [
        thing("cup", x=10, score=0.95),
        thing("cup", x=30, score=0.9),
        thing("cup", x=50, score=0.85),
    ]
    prompt = Prompt(text="", tag=tag, include=(Clause(name="cup", count=2),))
    reward = GenEval(detector=Stub(things=[seen]), counting=counting)
    scores = reward.load(CPU)(torch.zeros(1, 3, 4, 4), [prompt])
    assert scores.total.item() == graded
    assert scores.parts["geneval_accuracy"].item() == accuracy


def test_a_threshold_that_cannot_be_used():
    with pytest.raises(
        ConfigError, match=r"counting=1.0 is outside \[0, 1\); the benchmark's is 0.9"
    ):
        GenEval(detector=WorldDetector(), counting=1.0)


@component
class Painter:
    """Classifies everything as green, and keeps its queries."""

    queries: list

    def knows(self, color):
        return color == "green"

    weight_bytes = 0

    def load(self, device):
        return lambda images, things: self.queries.extend(things) or ["green"] * len(things)


def test_colours_are_classified_only_for_kinds_with_a_colour():
    seen = [[thing("cup"), thing("dog")], [thing("dog"), thing("cup", x=20), thing("cup", x=80)]]
    reward = GenEval(detector=Stub(things=seen), colors=Painter(queries=[]))
    green = Clause(name="cup", color="green")
    prompts = [Prompt(text="", include=(CUP, DOG)), Prompt(text="", include=(green, DOG))]
    looked = reward.load_detection(CPU)(torch.zeros(2, 3, 4, 4), prompts)
    assert reward.colors.queries == [(1, seen[1][1]), (1, seen[1][2])]
    assert [[t.color for t in things] for things in looked] == [
        ["red", "red"],
        ["red", "green", "green"],
    ]
    assert reward.load(CPU)(torch.zeros(2, 3, 4, 4), prompts).parts[
        "geneval_accuracy"
    ].tolist() == [1, 1]
    assert reward.accepts(prompts[1])
    assert not reward.accepts(Prompt(text="", include=(RED_CUP,)))


def test_prompts_it_cannot_judge_are_not_accepted():
    reward = GenEval(detector=WorldDetector())
    tags = {p.tag for p in captions.all_prompts(heldout=False) if reward.accepts(p)}
    six = {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert six < tags <= six | {"mixture"}
    assert not any(reward.accepts(p) for p in captions.all_prompts(heldout=False) if '"' in p.text)
    assert not reward.accepts(Prompt(text="a photo of a cup"))
    assert not reward.accepts(
        Prompt(text="", include=(Clause(name="cup", position=("behind", 1)), DOG))
    )


def test_objects_that_are_not_of_the_world_are_not_accepted():
    """Shipped prompts are about COCO's objects, which the synthetic world does not have."""
    reward = GenEval(detector=WorldDetector())
    of_coco = [
        parse_geneval(line)
        for line in (PROMPTS / "geneval_sample.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert not any(map(reward.accepts, of_coco))
    assert all(
        map(
            reward.accepts,
            [Prompt(text="", include=(Clause(name=name),)) for name in (*SHAPES, "word")],
        )
    )
    excluded = Prompt(text="", include=(Clause(name="circle"),), exclude=(Clause(name="cup"),))
    assert not reward.accepts(excluded)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(5)
    prompts = captions.draw_captions(rng, 120, captions.all_prompts(("shapes",), heldout=False))
    return prompts, torch.from_numpy(render.render(prompts, rng)).permute(0, 3, 1, 2).float() / 255


def test_real_renders_are_right(drawn):
    prompts, images = drawn
    score = GenEval(detector=WorldDetector(), name="objects").load(CPU)
    scores = score(images, prompts)
    assert scores.total.mean() > 0.98
    assert scores.parts["objects_accuracy"].mean() > 0.97
    assert score(images.roll(1, 0), prompts).total.mean() < 0.5


def test_an_image_with_nan_fails(drawn):
    prompts, images = drawn
    images = images[:3].clone()
    images[1, 0, 0, 0] = torch.inf
    scores = GenEval(detector=WorldDetector()).load(CPU)(images, prompts[:3])
    assert scores.failed.tolist() == [False, True, False]
    assert scores.parts["geneval_accuracy"].isnan().tolist() == [False, True, False]
