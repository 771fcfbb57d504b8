"""The exact judge of the world's pictures: what is in them, is it what the prompt asks, and how clean they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from grpo_guard.types import Clause, Prompt, record
from grpo_guard.world.glyphs import glyphs
from grpo_guard.world.render import coverage
from grpo_guard.world.scene import (
    BACKGROUND,
    COLORS,
    INK,
    LEXICON,
    PALETTE,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZE,
    WORD,
)

UNKNOWN = "unknown"  # the name of a blob that is no shape

_INKS = torch.cat(
    [torch.from_numpy(PALETTE), torch.tensor([INK])]
)  # the colours of things, black last
_PAPER = sum(BACKGROUND) / 2
_REACH = 0.30  # RGB distance within which a pixel is a mixture of paper and an ink
_CHUNK = 64  # pictures per pass: keeps the working set in cache
_SPECK = 12  # px, smaller blobs are overlooked
_GRID = (20, 56)  # height, width to which blobs are stretched before they are compared
_MATCH = 0.75  # least likeness of a shape to its template
_LEGIBLE = 0.85  # least likeness of a word to its template, 0.96 after a strong blur, 0.58 with a letter wrong
_CLOSE = 0.1  # slack of GenEval's relations, as a share of the two sizes
_NEAR = 6.0  # px by which a word may miss its place
_SOILED = 0.5  # mean RGB distance to the nearest colour of the world at which nothing is clean
_FLAT = (
    torch.tensor([0, 1, 0], dtype=torch.bool)[:, None, None].expand(3, 3, 3).numpy()
)  # neighbours within a plane


@record
class Detection:
    """A thing in a picture: `box` is (x0, y0, x1, y1) in px, `score` its likeness to its template in [0, 1].

    What cannot be made out is called "unknown", or is a word whose `text` is empty.
    """

    name: str
    color: str
    box: tuple[float, ...]
    score: float
    text: str | None = None


@record
class Verdict:
    """Shares in [0, 1]: facts of the prompt that hold; whether all do and nothing else is there; cleanliness."""

    facts: Float[Tensor, " B"]
    exact: Float[Tensor, " B"]
    clean: Float[Tensor, " B"]


@record
class _Blobs:
    """Connected regions of one ink (an index into `_INKS`); `amount` is the ink in the whole picture, in [0, 1]."""

    image: Int[Tensor, " N"]
    color: Int[Tensor, " N"]
    box: Float[Tensor, "N 4"]
    amount: Float[Tensor, "N H W"]

    def __getitem__(self, rows: Tensor) -> _Blobs:
        return _Blobs(
            image=self.image[rows],
            color=self.color[rows],
            box=self.box[rows],
            amount=self.amount[rows],
        )


def check(images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> Verdict:
    """Judge pictures in [0, 1] by their prompts."""
    seen = detect(images)
    facts = [_facts(prompt, things) for prompt, things in zip(prompts, seen, strict=True)]
    counts = [sum(clause.count for clause in prompt.include) for prompt in prompts]
    exact = [
        all(held) and len(things) == count
        for held, things, count in zip(facts, seen, counts, strict=True)
    ]
    share = [sum(held) / len(held) if held else 1.0 for held in facts]
    clean = [_cleanliness(chunk) for chunk in images.float().cpu().split(_CHUNK)]
    return Verdict(
        facts=torch.tensor(share), exact=torch.tensor(exact).float(), clean=torch.cat(clean)
    )


def detect(images: Float[Tensor, "B 3 H W"]) -> list[tuple[Detection, ...]]:
    """Every shape, word and unknown blob in pictures in [0, 1]; all black ink of a picture is one word."""
    return list(chain.from_iterable(_detect(chunk) for chunk in images.float().cpu().split(_CHUNK)))


def statistics(
    images: Float[Tensor, "B 3 H W"], *, period: int = 2
) -> dict[str, Float[Tensor, " B"]]:
    """Plain measures in [0, 1] of pictures of any content and size, to see how they drift.

    `grid_energy` is the share of spectral energy on a grid of `period` px: 2 for single pixels, the patch size in px
    for a transformer's patches.
    """
    images = images.float()
    luminance = images.mean(1)
    across, down = luminance.diff(dim=2).abs(), luminance.diff(dim=1).abs()
    return {
        "dark_fraction": (luminance < 0.2).float().mean((1, 2)),
        "edge_density": ((across > 0.1).float().mean((1, 2)) + (down > 0.1).float().mean((1, 2)))
        / 2,
        "color_entropy": _color_entropy(images),
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "grid_energy": _grid_energy(luminance, period),
    }


def _detect(images: Float[Tensor, "B 3 H W"]) -> list[tuple[Detection, ...]]:
    blobs = _blobs(images)
    is_ink = blobs.color == len(PALETTE)
    seen: list[list[Detection]] = [[] for _ in images]
    for image, thing in (*_name(blobs[~is_ink]), *_read(_merge(blobs[is_ink]))):
        seen[image].append(thing)
    return [tuple(things) for things in seen]


def _blobs(images: Float[Tensor, "B 3 H W"]) -> _Blobs:
    """The connected regions of every ink, specks left out; one labelling serves the whole batch."""
    amounts, masks = _inks(images)
    areas = np.count_nonzero(masks.numpy(), axis=(2, 3))
    image, color = map(torch.from_numpy, np.nonzero(areas >= _SPECK))
    labels, count = ndimage.label(masks[image, color].numpy(), _FLAT)
    large = np.bincount(labels.ravel())[1:] >= _SPECK
    found = ndimage.find_objects(labels) if count else []
    slices = [box for box, keep in zip(found, large, strict=True) if keep]
    plane = torch.tensor([z.start for z, _, _ in slices], dtype=torch.long)
    box = torch.tensor(
        [(x.start, y.start, x.stop, y.stop) for _, y, x in slices], dtype=torch.float
    ).reshape(-1, 4)
    return _Blobs(
        image=image[plane], color=color[plane], box=box, amount=amounts[image[plane], color[plane]]
    )


def _inks(
    images: Float[Tensor, "B 3 H W"],
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B C H W"]]:
    """How much of every ink mixed with paper makes each pixel, in [0, 1], and which ink, if any, makes most of it."""
    inks, pixels = _INKS - _PAPER, images - _PAPER
    lengths = inks.square().sum(1)[:, None, None]
    amounts = _project(pixels, inks) / lengths
    error = pixels.square().sum(1, keepdim=True) - amounts.square() * lengths
    near = error <= error.amin(1, keepdim=True).clamp_max(_REACH**2)
    return amounts.clamp_(0, 1), near & (amounts > 0.5)


def _project(
    pixels: Float[Tensor, "B 3 H W"], colors: Float[Tensor, "C 3"]
) -> Float[Tensor, "B C H W"]:
    """Inner product of every pixel with every colour."""
    products: Tensor = colors @ pixels.flatten(2)
    return products.reshape(*products.shape[:2], *pixels.shape[2:])


def _merge(blobs: _Blobs) -> _Blobs:
    """One blob for all those of a picture; blobs come in the order of pictures."""
    _, rows = np.unique(blobs.image.numpy(), return_index=True)
    if not len(rows):
        return blobs
    low, high = (
        np.minimum.reduceat(blobs.box[:, :2].numpy(), rows),
        np.maximum.reduceat(blobs.box[:, 2:].numpy(), rows),
    )
    first = blobs[torch.from_numpy(rows)]
    box = torch.from_numpy(np.concatenate([low, high], 1))
    return _Blobs(image=first.image, color=first.color, box=box, amount=first.amount)


def _focus(blobs: _Blobs) -> _Blobs:
    """Boxes by the moments of the ink in them: finer than pixels, so unmoved by noise on a faint edge."""
    y, x = (torch.arange(extent) + 0.5 for extent in blobs.amount.shape[1:])
    low, high = blobs.box[:, :2, None] - 1, blobs.box[:, 2:, None] + 1
    columns, rows = (
        (low[:, axis] < ticks) & (ticks < high[:, axis]) for axis, ticks in enumerate((x, y))
    )
    ink = blobs.amount * columns[:, None] * rows[:, :, None]
    box = torch.stack([_span(ink.sum(1), x), _span(ink.sum(2), y)], 2).flatten(1)
    return _Blobs(image=blobs.image, color=blobs.color, box=box, amount=blobs.amount)


def _span(ink: Float[Tensor, "N L"], ticks: Float[Tensor, " L"]) -> Float[Tensor, "N 2"]:
    """Where ink begins and ends on an axis, as if it were spread evenly."""
    share = ink / ink.sum(1, keepdim=True)
    mean = share @ ticks
    reach = (3 * (share * (ticks - mean[:, None]).square()).sum(1)).sqrt()
    return torch.stack([mean - reach, mean + reach], 1)


def _stretch(blobs: _Blobs) -> Float[Tensor, "N P"]:
    """The ink in each blob's box resampled to `_GRID`, flattened."""
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in _GRID)
    ticks = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    low, high = blobs.box[:, None, None].split(2, -1)
    grid = (low + (high - low) * ticks) / torch.tensor(blobs.amount.shape[:0:-1])
    return F.grid_sample(blobs.amount[:, None], grid * 2 - 1, align_corners=False).flatten(1)


def _name(blobs: _Blobs) -> list[tuple[int, Detection]]:
    """Coloured blobs as the shapes they resemble most."""
    patch, template = _stretch(blobs), _shape_templates()
    both = patch @ template.T
    likeness = both / (patch.square().sum(1, keepdim=True) + template.square().sum(1) - both)
    sides = blobs.box[:, 2:] - blobs.box[:, :2]
    score, index = (likeness * (sides.amin(1) / sides.amax(1))[:, None]).max(1)
    names = [
        SHAPES[i] if s >= _MATCH else UNKNOWN
        for i, s in zip(index.tolist(), score.tolist(), strict=True)
    ]
    return _detections(blobs, score, names, [None] * len(names))


def _read(blobs: _Blobs) -> list[tuple[int, Detection]]:
    """Ink as the word of the lexicon it resembles most."""
    score, index = (_normal(_stretch(_focus(blobs))) @ _word_templates().T).max(1)
    texts = [
        LEXICON[i] if s >= _LEGIBLE else ""
        for i, s in zip(index.tolist(), score.tolist(), strict=True)
    ]
    return _detections(blobs, score.clamp_min(0), [WORD] * len(texts), texts)


def _detections(
    blobs: _Blobs, score: Float[Tensor, " N"], names: Sequence[str], texts: Sequence[str | None]
) -> list[tuple[int, Detection]]:
    colors = (*COLORS, "black")
    columns = (
        blobs.image.tolist(),
        blobs.color.tolist(),
        blobs.box.tolist(),
        score.tolist(),
        names,
        texts,
    )
    return [
        (
            image,
            Detection(name=name, color=colors[color], box=tuple(box), score=likeness, text=text),
        )
        for image, color, box, likeness, name, text in zip(*columns, strict=True)
    ]


def _normal(rows: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
    """Rows of mean 0 and norm 1, whose products are correlations."""
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


@cache
def _shape_templates() -> Float[Tensor, "S P"]:
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2
    drawings = [
        coverage(shape, pixel, pixel[:, None], np.array(10, np.float32))
        for shape in range(len(SHAPES))
    ]
    return _stretch(_ideal(drawings, _INKS[0]))


@cache
def _word_templates() -> Float[Tensor, "W P"]:
    room = [(SIZE - mask.shape[0], SIZE - mask.shape[1]) for mask in glyphs()]
    drawings = [np.pad(mask, ((0, y), (0, x))) for mask, (y, x) in zip(glyphs(), room, strict=True)]
    return _normal(_stretch(_focus(_ideal(drawings, _INKS[-1]))))


def _ideal(drawings: Sequence[np.ndarray], ink: Float[Tensor, " 3"]) -> _Blobs:
    """What the detector itself sees in clean drawings (coverage of each pixel), one blob each."""
    coverages = torch.from_numpy(np.stack(drawings))[:, None]
    return _merge(_blobs(_PAPER + coverages * (ink[:, None, None] - _PAPER)))


def _facts(prompt: Prompt, seen: Sequence[Detection]) -> list[bool]:
    """Whether each atomic fact of a prompt holds: per clause number, colour, spelling and relation."""
    return [
        fact for clause in prompt.include for fact in _clause_facts(clause, prompt.include, seen)
    ]


def _clause_facts(
    clause: Clause, clauses: Sequence[Clause], seen: Sequence[Detection]
) -> list[bool]:
    named = [thing for thing in seen if thing.name == clause.name]
    alike = [other for other in clauses if other.name == clause.name]
    facts = [len(named) == sum(other.count for other in alike)]
    if clause.color:
        wanted = sum(other.count for other in alike if other.color == clause.color)
        facts.append(sum(thing.color == clause.color for thing in named) == wanted)
    if clause.text:
        facts.append(any(thing.text == clause.text for thing in named))
    if clause.position:
        relation, index = clause.position
        facts.append(_stands(relation, _meant(clause, seen), _meant(clauses[index], seen)))
    return facts


def _meant(clause: Clause, seen: Sequence[Detection]) -> list[Detection]:
    """The things a clause speaks of: of its name and colour, or of its name where none has its colour."""
    named = [thing for thing in seen if thing.name == clause.name]
    return [thing for thing in named if thing.color == clause.color] or named


def _stands(relation: str, things: Sequence[Detection], anchors: Sequence[Detection]) -> bool:
    if relation in PLACES:
        low, high = PLACES[relation]
        return any(low - _NEAR <= _center(thing)[1] <= high + _NEAR for thing in things)
    return any(_relates(relation, a, b) for a in things for b in anchors if a is not b)


def _relates(relation: str, a: Detection, b: Detection) -> bool:
    """GenEval's rule (arXiv:2310.11513): the offset, less a slack, points within 60 degrees of the relation."""
    (ax, ay), (bx, by), (ux, uy) = _center(a), _center(b), RELATIONS[relation]
    dx, dy = ax - bx, ay - by
    extents = [
        thing.box[2 + axis] - thing.box[axis]
        for thing in (a, b)
        for axis in (0, 1)
        if RELATIONS[relation][axis]
    ]
    return dx * ux + dy * uy - _CLOSE * sum(extents) > 0.5 * math.hypot(dx, dy)


def _center(thing: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = thing.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _cleanliness(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """1 less the mean RGB distance to the nearest ink or grey of the background."""
    grey = images.mean(1, keepdim=True).clamp(*BACKGROUND)
    to_grey = (images - grey).square().sum(1)
    to_inks = _INKS.square().sum(1)[:, None, None] - 2 * _project(images, _INKS)
    nearest = torch.minimum(to_grey, to_inks.amin(1) + images.square().sum(1))
    distance = nearest.clamp_min(0).sqrt().mean((1, 2))
    return (1 - distance / _SOILED).clamp_min(0)


def _color_entropy(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Entropy of a histogram of 4 x 4 x 4 colours, 1 where all are equally frequent."""
    level = (images * 4).long().clamp(0, 3).flatten(2)
    bins = level[:, 0] * 16 + level[:, 1] * 4 + level[:, 2]
    offset = 64 * torch.arange(len(bins), device=bins.device)[:, None]
    counts = torch.bincount((bins + offset).flatten(), minlength=64 * len(bins)).reshape(-1, 64)
    entropy: Tensor = torch.special.entr(counts / bins.shape[1]).sum(1)
    return entropy / math.log(64)


def _grid_energy(luminance: Float[Tensor, "B H W"], period: int) -> Float[Tensor, " B"]:
    """Share of spectral energy at the harmonics of 1 / period on either axis."""
    energy = torch.fft.fft2(luminance - luminance.mean((1, 2), keepdim=True)).abs().square()
    places = [torch.arange(extent, device=energy.device) for extent in luminance.shape[1:]]
    rows, columns = (at * period % len(at) == 0 for at in places)
    rows[0] = columns[0] = False
    share: Tensor = (energy * (rows[:, None] | columns)).sum((1, 2)) / energy.sum((1, 2)).clamp_min(
        1e-12
    )
    return share
