"""Finds the shapes and words in pictures of the world, by comparing ink with templates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from grpo_guard.schema import record
from grpo_guard.world.glyphs import glyphs
from grpo_guard.world.inks import CHUNK, INKS, PAPER_GREY, separate_inks
from grpo_guard.world.render import coverage
from grpo_guard.world.scene import LEXICON, PALETTE, SHAPE_COLORS, SHAPES, SIZE, WORD

UNKNOWN = "unknown"
"""The name of a blob that is no shape."""

_SPECK = 12
"""Blobs of fewer px are ignored."""
_GRID = (20, 56)
"""Height and width to which blobs are stretched before they are compared."""
_MATCH = 0.75
"""Minimum likeness of a shape to its template."""
_LEGIBLE = 0.85
"""Minimum likeness of a word to its template.

A word reaches 0.96 after a strong blur, and 0.58 with one letter wrong.
"""
_FLAT = torch.tensor([0, 1, 0], dtype=torch.bool)[:, None, None].expand(3, 3, 3).numpy()
"""Neighbourhood for labelling a stack of planes: the 8 neighbours within a plane, none across."""


@record
class Detection:
    """A thing in a picture."""

    name: str
    """A shape, "word", or "unknown" if the blob resembles no shape."""
    color: str
    """A name of `SHAPE_COLORS`, or "black"."""
    box: tuple[float, ...]
    """Corners (x0, y0, x1, y1) in px."""
    score: float
    """Likeness to the best template, in [0, 1]."""
    text: str | None = None
    """What a word spells; empty if it is illegible, None for a shape."""


@record
class _Blobs:
    """Connected regions, each of one ink."""

    image: Int[Tensor, " N"]
    """Index of the picture; ascending."""
    color: Int[Tensor, " N"]
    """Index into `INKS`."""
    box: Float[Tensor, "N 4"]
    """Corners (x0, y0, x1, y1) in px."""
    amount: Float[Tensor, "N H W"]
    """Share of the ink in each pixel of the whole picture, in [0, 1]."""

    def __getitem__(self, rows: Tensor) -> _Blobs:
        return _Blobs(
            image=self.image[rows],
            color=self.color[rows],
            box=self.box[rows],
            amount=self.amount[rows],
        )


def detect(images: Float[Tensor, "B 3 H W"]) -> list[tuple[Detection, ...]]:
    """Return every shape, word and unknown blob in pictures in [0, 1].

    All black ink of a picture is taken for one word.
    """
    return list(chain.from_iterable(_detect(chunk) for chunk in images.float().cpu().split(CHUNK)))


def _detect(images: Float[Tensor, "B 3 H W"]) -> list[tuple[Detection, ...]]:
    blobs = _find_blobs(images)
    is_black = blobs.color == len(PALETTE)
    things: list[list[Detection]] = [[] for _ in images]
    for image, thing in (*_name_shapes(blobs[~is_black]), *_read_words(_merge(blobs[is_black]))):
        things[image].append(thing)
    return list(map(tuple, things))


def _find_blobs(images: Float[Tensor, "B 3 H W"]) -> _Blobs:
    """Find the connected regions of every ink, without specks.

    The planes of all pictures and inks are stacked, so that one call labels the whole batch.
    """
    amounts, masks = separate_inks(images)
    areas = np.count_nonzero(masks.numpy(), axis=(2, 3))
    image, color = map(torch.from_numpy, np.nonzero(areas >= _SPECK))
    labels, count = ndimage.label(masks[image, color].numpy(), _FLAT)
    large = np.bincount(labels.ravel())[1:] >= _SPECK
    regions = ndimage.find_objects(labels) if count else []
    slices = [region for region, keep in zip(regions, large, strict=True) if keep]
    plane = torch.tensor([z.start for z, _, _ in slices], dtype=torch.long)
    box = torch.tensor(
        [(x.start, y.start, x.stop, y.stop) for _, y, x in slices], dtype=torch.float
    ).reshape(-1, 4)
    return _Blobs(
        image=image[plane], color=color[plane], box=box, amount=amounts[image[plane], color[plane]]
    )


def _merge(blobs: _Blobs) -> _Blobs:
    """Merge all blobs of a picture into one."""
    _, rows = np.unique(blobs.image.numpy(), return_index=True)
    if not len(rows):
        return blobs
    low = np.minimum.reduceat(blobs.box[:, :2].numpy(), rows)
    high = np.maximum.reduceat(blobs.box[:, 2:].numpy(), rows)
    first = blobs[torch.from_numpy(rows)]
    box = torch.from_numpy(np.concatenate([low, high], 1))
    return _Blobs(image=first.image, color=first.color, box=box, amount=first.amount)


def _focus(blobs: _Blobs) -> _Blobs:
    """Replace the boxes by finer ones, from the moments of the ink in them.

    Boxes of whole pixels jump when noise touches a faint edge; these do not.
    """
    y, x = (torch.arange(extent) + 0.5 for extent in blobs.amount.shape[1:])
    low, high = blobs.box[:, :2, None] - 1, blobs.box[:, 2:, None] + 1
    columns = (low[:, 0] < x) & (x < high[:, 0])
    rows = (low[:, 1] < y) & (y < high[:, 1])
    ink = blobs.amount * columns[:, None] * rows[:, :, None]
    box = torch.stack([_span(ink.sum(1), x), _span(ink.sum(2), y)], 2).flatten(1)
    return _Blobs(image=blobs.image, color=blobs.color, box=box, amount=blobs.amount)


def _span(ink: Float[Tensor, "N L"], ticks: Float[Tensor, " L"]) -> Float[Tensor, "N 2"]:
    """Return where ink begins and ends on an axis if it were spread evenly.

    An even spread over [-r, r] has the variance r^2 / 3.
    """
    share = ink / ink.sum(1, keepdim=True)
    mean = share @ ticks
    reach = (3 * (share * (ticks - mean[:, None]).square()).sum(1)).sqrt()
    return torch.stack([mean - reach, mean + reach], 1)


def _stretch(blobs: _Blobs) -> Float[Tensor, "N P"]:
    """Resample the ink in each blob's box to `_GRID`, flattened."""
    y, x = ((torch.arange(cells) + 0.5) / cells for cells in _GRID)
    ticks = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    low, high = blobs.box[:, None, None].split(2, -1)
    grid = (low + (high - low) * ticks) / torch.tensor(blobs.amount.shape[:0:-1])
    return F.grid_sample(blobs.amount[:, None], grid * 2 - 1, align_corners=False).flatten(1)


def _name_shapes(blobs: _Blobs) -> list[tuple[int, Detection]]:
    """Give coloured blobs the name of the shape that they resemble most.

    The likeness is the Tanimoto coefficient, times the ratio of the box's sides.
    """
    patch, template = _stretch(blobs), _shape_templates()
    both = patch @ template.T
    likeness = both / (patch.square().sum(1, keepdim=True) + template.square().sum(1) - both)
    sides = blobs.box[:, 2:] - blobs.box[:, :2]
    score, index = (likeness * (sides.amin(1) / sides.amax(1))[:, None]).max(1)
    best = zip(index.tolist(), score.tolist(), strict=True)
    names = [SHAPES[i] if s >= _MATCH else UNKNOWN for i, s in best]
    return _detections(blobs, score, names, [None] * len(names))


def _read_words(blobs: _Blobs) -> list[tuple[int, Detection]]:
    """Read black ink as the word of the lexicon that it resembles most."""
    score, index = (_standardize(_stretch(_focus(blobs))) @ _word_templates().T).max(1)
    best = zip(index.tolist(), score.tolist(), strict=True)
    texts = [LEXICON[i] if s >= _LEGIBLE else "" for i, s in best]
    return _detections(blobs, score.clamp_min(0), [WORD] * len(texts), texts)


def _detections(
    blobs: _Blobs, score: Float[Tensor, " N"], names: Sequence[str], texts: Sequence[str | None]
) -> list[tuple[int, Detection]]:
    """Return the index of the picture and the detection of every blob."""
    colors = (*SHAPE_COLORS, "black")
    things = [
        Detection(name=name, color=colors[color], box=tuple(box), score=likeness, text=text)
        for color, box, likeness, name, text in zip(
            blobs.color.tolist(), blobs.box.tolist(), score.tolist(), names, texts, strict=True
        )
    ]
    return list(zip(blobs.image.tolist(), things, strict=True))


def _standardize(rows: Float[Tensor, "N P"]) -> Float[Tensor, "N P"]:
    """Give rows mean 0 and norm 1, so that their products are correlations."""
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


@cache
def _shape_templates() -> Float[Tensor, "S P"]:
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2
    half = np.array(10, np.float32)
    drawings = [coverage(shape, pixel, pixel[:, None], half) for shape in range(len(SHAPES))]
    return _stretch(_ideal(drawings, INKS[0]))


@cache
def _word_templates() -> Float[Tensor, "W P"]:
    room = [(SIZE - mask.shape[0], SIZE - mask.shape[1]) for mask in glyphs()]
    drawings = [np.pad(mask, ((0, y), (0, x))) for mask, (y, x) in zip(glyphs(), room, strict=True)]
    return _standardize(_stretch(_focus(_ideal(drawings, INKS[-1]))))


def _ideal(drawings: Sequence[np.ndarray], ink: Float[Tensor, " 3"]) -> _Blobs:
    """Return the blobs that the detector finds in clean drawings, one for each.

    A drawing is the coverage of each pixel in [0, 1].
    """
    coverages = torch.from_numpy(np.stack(drawings))[:, None]
    return _merge(_find_blobs(PAPER_GREY + coverages * (ink[:, None, None] - PAPER_GREY)))
