"""GenEval: are the objects of a prompt in the image, in number, colour and position?

After arXiv:2310.11513. A detector lists the objects of an image (`_detection.py`), and
`_geneval_demands.py` compares them with each demand of the prompt. This module turns the demands
into scores.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_guard.reward import Scorer, make_rewards
from grpo_guard.reward._detection import (
    ClassifyColors,
    ColorClassifier,
    Detector,
    LimitedDetector,
    LimitedPalette,
)
from grpo_guard.reward._geneval_demands import (
    DIRECTIONS,
    check_demands,
    check_excluded,
    check_included,
)
from grpo_guard.schema import Advice, Name, Threshold, component
from grpo_guard.types import Clause, Prompt, Rewards
from grpo_guard.world.detection import Detection

MeasureName = Literal["graded", "accuracy", "strict"]

DetectForPrompts = Callable[
    [Float[Tensor, "B 3 H W"], Sequence[Prompt]], Sequence[Sequence[Detection]]
]
"""(images in [0, 1], their prompts) -> the objects of each image that count for its prompt."""


@component
class DetectorColors:
    """Use the colours that the detector itself reports."""

    def knows(self, color: str) -> bool:
        """Accept every colour."""
        return True

    weight_bytes: ClassVar[int] = 0
    """Always 0: there are no weights."""

    def load(self, device: torch.device) -> ClassifyColors:
        """Return a function that repeats the detector's colours."""
        return lambda images, objects: [detection.color for _, detection in objects]


@component
class GenEval:
    """Score how far an image meets the demands of its prompt, from 0 to 1.

    The total is what `measure` names. The second part, `<name>_accuracy`, is always the benchmark's
    own `accuracy`. The notes are those of `explain_demands`.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "{name}": "how far the picture has the objects, numbers, colours and places of its prompt,"
        " from 0 to 1 (measure: {measure})",
        "{name}_accuracy": "GenEval's own measure: 1 if all objects of the prompt are there,"
        " else 0; others do no harm",
    }
    detector: Detector
    """Detects the objects of an image."""
    measure: MeasureName = "graded"
    """`graded`, `strict` or `accuracy`: the function of `MEASURES` that makes the total."""
    name: Name = "geneval"
    """Name of the score in the metrics; the benchmark's accuracy is `<name>_accuracy`."""
    colors: ColorClassifier = DetectorColors()
    """Classifies the colours of those objects whose kind has a colour in the prompt."""
    counting: Annotated[Threshold, Advice("the benchmark's is 0.9")] = 0.0
    """Score in [0, 1) that an object must exceed in prompts with the tag "counting".

    The benchmark uses 0.9 there, because an uncertain detection is often a second one of the same
    object.
    """

    compares: ClassVar[bool] = False

    def accepts(self, prompt: Prompt) -> bool:
        """Accept prompts about objects, colours and relations that can be judged; no spelling."""
        clauses = prompt.include
        relations = {clause.position[0] for clause in clauses if clause.position}
        return (
            bool(clauses)
            and all(self._knows(clause) for clause in (*clauses, *prompt.exclude))
            and not any(clause.text for clause in clauses)
            and relations <= DIRECTIONS.keys()
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the detector and of the colour classifier."""
        return self.detector.weight_bytes + self.colors.weight_bytes

    def load(self, device: torch.device) -> Scorer:
        """Load the detector and the colour classifier, and return the scorer."""
        detect = self.load_detection(device)
        measure = MEASURES[self.measure]

        def score(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Rewards:
            pairs = list(zip(prompts, detect(images, prompts), strict=True))
            parts = {
                self.name: torch.tensor([measure(*pair) for pair in pairs]),
                f"{self.name}_accuracy": torch.tensor([accuracy(*pair) for pair in pairs]),
            }
            notes = tuple(tuple(explain_demands(*pair)) for pair in pairs)
            return dataclasses.replace(make_rewards(images, **parts), notes=notes)

        return score

    def load_detection(self, device: torch.device) -> DetectForPrompts:
        """Load the models, and return the function that lists the objects that are judged."""
        detect = self.detector.load(device)
        classify = self.colors.load(device)

        def detect_for_prompts(
            images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]
        ) -> list[list[Detection]]:
            pairs = zip(prompts, detect(images), strict=True)
            counted = [self._select_counted(prompt, objects) for prompt, objects in pairs]
            return _replace_colors(classify, images, prompts, counted)

        return detect_for_prompts

    def _knows(self, clause: Clause) -> bool:
        if isinstance(self.detector, LimitedDetector) and not self.detector.knows(clause.name):
            return False
        if clause.color is None:
            return True
        # The detector's own colours are a palette that only the detector knows.
        if isinstance(self.colors, DetectorColors) and isinstance(self.detector, LimitedPalette):
            return self.detector.knows_color(clause.color)
        return self.colors.knows(clause.color)

    def _select_counted(
        self, prompt: Prompt, detections: Sequence[Detection]
    ) -> Sequence[Detection]:
        if prompt.tag != "counting":
            return detections
        return [detection for detection in detections if detection.score > self.counting]


def graded_score(prompt: Prompt, detections: Sequence[Detection]) -> float:
    """Return the mean value of all demands, in [0, 1]."""
    demands = check_demands(prompt, detections)
    return sum(demand.value for demand in demands) / len(demands)


def strict_score(prompt: Prompt, detections: Sequence[Detection]) -> float:
    """Return 1 if every demand is met exactly, else 0."""
    return float(all(demand.value == 1 for demand in check_demands(prompt, detections)))


def accuracy(prompt: Prompt, detections: Sequence[Detection]) -> float:
    """Return the benchmark's measure: 1 if the most certain objects meet all demands, else 0.

    As many objects of each kind are looked at as the prompt demands; more of them do no harm
    unless the prompt excludes them.
    """
    included = check_included(prompt.include, _most_certain(prompt.include, detections))
    excluded = check_excluded(prompt.exclude, detections)
    return float(all(demand.value == 1 for demand in included + excluded))


MEASURES: Mapping[MeasureName, Callable[[Prompt, Sequence[Detection]], float]] = {
    "graded": graded_score,
    "accuracy": accuracy,
    "strict": strict_score,
}
"""(prompt, detected objects) -> how well they meet its demands, in [0, 1], by name."""


def explain_demands(prompt: Prompt, detections: Sequence[Detection]) -> list[str]:
    """Return a line per demand: how far it is met, what it is, and what was detected."""
    lines = [
        f"{demand.value:.2f} {demand.text}: saw {demand.observation}"
        for demand in check_demands(prompt, detections)
    ]
    return list(dict.fromkeys(lines))  # clauses about one kind of object repeat its number


def _replace_colors(
    classify: ClassifyColors,
    images: Float[Tensor, "B 3 H W"],
    prompts: Sequence[Prompt],
    detections: Sequence[Sequence[Detection]],
) -> list[list[Detection]]:
    """Classify the colours of those objects whose kind has a colour in their prompt."""
    queries = []
    for row, prompt in enumerate(prompts):
        colored = {clause.name for clause in (*prompt.include, *prompt.exclude) if clause.color}
        queries += [(row, thing) for thing in detections[row] if thing.name in colored]
    colors = dict(zip(queries, classify(images, queries), strict=True))
    return [
        [dataclasses.replace(thing, color=colors.get((row, thing), thing.color)) for thing in image]
        for row, image in enumerate(detections)
    ]


def _most_certain(clauses: Sequence[Clause], detections: Sequence[Detection]) -> list[Detection]:
    """Return the objects with the highest scores: for each kind, as many as clauses demand."""
    counts: Counter[str] = Counter()
    for clause in clauses:
        counts[clause.name] += clause.count
    ranked = sorted(detections, key=lambda detection: -detection.score)
    kept: list[Detection] = []
    for name, count in counts.items():
        kept += [detection for detection in ranked if detection.name == name][:count]
    return kept
