"""How small a word OCR reads, in the fonts that matplotlib ships and in the world's own letters."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track
from rich.table import Table
from torch import Tensor

from grpo_guard.command.benches.rewards import TimedScorer, to_tensor
from grpo_guard.console import reading
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render
from grpo_guard.world.scene import LEXICON

FONTS = {
    "DejaVu Sans": "DejaVuSans",
    "DejaVu Serif": "DejaVuSerif",
    "DejaVu Sans Mono": "DejaVuSansMono",
    "STIX": "STIXGeneral",
    "Computer Modern": "cmr10",
}
"""Files of fonts, without suffix, by name."""
SIZES = (6, 8, 10, 12, 16, 24)
"""Sizes of a font in px."""
SIDE = 128
"""Side in px of a picture that shows a word of a font."""
PAPER = 242
"""Level of the background, 0 to 255."""
INK = 0
"""Level of the letters, 0 to 255."""


def measure_spelling(words: int) -> Table:
    """Read words of each font and size: how many are read exactly, and how alike the rest are."""
    cases = [
        (name, str(size), *print_words(file, size, words))
        for name, file in FONTS.items()
        for size in SIZES
    ]
    cases.append(("the world's", "-", *draw_scenes(words)))
    table = Table("font", "px", "words", "read exactly", "mean similarity", "ms per image")
    score = reading.build_reward("ocr match=exact").load(torch.device("cpu"))
    for font, size, prompts, images in track(cases, "reading"):
        timed = TimedScorer(score)
        similarity = timed(images, prompts).total
        exact = (similarity == 1).float().mean()
        milliseconds = 1e3 * timed.seconds[0] / words
        cells = f"{exact:.2f}", f"{similarity.mean():.2f}", f"{milliseconds:.0f}"
        table.add_row(font, size, str(words), *cells)
    return table


def print_words(file: str, size: int, words: int) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """Print words of the world's lexicon in capitals, each in a picture of its own."""
    rng = np.random.default_rng(0)
    texts = list(islice(cycle(LEXICON), words))
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{file}.ttf"
    font = ImageFont.truetype(path, size)
    pictures = np.stack([print_word(font, text.upper(), rng) for text in texts])
    return [Prompt(text=f'"{text}"') for text in texts], to_tensor(pictures)


def print_word(font: ImageFont.FreeTypeFont, text: str, rng: np.random.Generator) -> np.ndarray:
    """Print black letters anywhere on light grey; returns 8 bits (H W 3)."""
    left, top, right, bottom = font.getbbox(text)
    x, y = rng.uniform(0, SIDE - np.array([right - left, bottom - top]))
    paper = Image.new("RGB", (SIDE, SIDE), (PAPER,) * 3)
    ImageDraw.Draw(paper).text((x - left, y - top), text, fill=(INK,) * 3, font=font)
    return np.asarray(paper)


def draw_scenes(words: int) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """Draw scenes that show a word and nothing else, as training draws them."""
    rng = np.random.default_rng(0)
    prompts = captions.draw_captions(rng, words, captions.all_prompts(("words",), heldout=False))
    return prompts, to_tensor(render.render(prompts, rng))
