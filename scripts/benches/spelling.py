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

from benches import rewards as pace
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render
from grpo_guard.world.scene import LEXICON
from lib import reading

FONTS = {
    "DejaVu Sans": "DejaVuSans",
    "DejaVu Serif": "DejaVuSerif",
    "DejaVu Sans Mono": "DejaVuSansMono",
    "STIX": "STIXGeneral",
    "Computer Modern": "cmr10",
}
SIZES = (6, 8, 10, 12, 16, 24)  # px, of a font
SIDE = 128  # px, of a picture with a word in one of them
PAPER, INK = 242, 0


def spelling(words: int) -> Table:
    """How many words of each font and size are read without a mistake, and how alike what is read is on average."""
    cells = [
        (name, str(size), *printed(FONTS[name], size, words)) for name in FONTS for size in SIZES
    ]
    cells.append(("the world's", "-", *worlds(words)))
    shown = Table("font", "px", "words", "read exactly", "similarity", "ms per image")
    score = reading.reward("ocr match=exact").load(torch.device("cpu"))
    for font, size, prompts, images in track(cells, "reading"):
        clocked = pace.Clocked(score)
        found = clocked(images, prompts).total
        exact, alike = (found == 1).float().mean(), found.mean()
        shown.add_row(
            font,
            size,
            str(words),
            f"{exact:.2f}",
            f"{alike:.2f}",
            f"{1e3 * clocked.seconds[0] / words:.0f}",
        )
    return shown


def printed(font: str, size: int, words: int) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """The lexicon over and over, in capitals, each word somewhere in a picture of its own."""
    rng, texts = np.random.default_rng(0), list(islice(cycle(LEXICON), words))
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(file, size)
    pictures = np.stack([page(face, text.upper(), rng) for text in texts])
    return [Prompt(text=f'"{text}"') for text in texts], pace.tensor(pictures)


def page(face: ImageFont.FreeTypeFont, text: str, rng: np.random.Generator) -> np.ndarray:
    """Black letters anywhere on light grey, 8 bits (H W 3)."""
    left, top, right, bottom = face.getbbox(text)
    x, y = rng.uniform(0, SIDE - np.array([right - left, bottom - top]))
    paper = Image.new("RGB", (SIDE, SIDE), (PAPER,) * 3)
    ImageDraw.Draw(paper).text((x - left, y - top), text, fill=(INK,) * 3, font=face)
    return np.asarray(paper)


def worlds(words: int) -> tuple[list[Prompt], Float[Tensor, "B 3 H W"]]:
    """Scenes that show a word and nothing else, as training draws them."""
    rng = np.random.default_rng(0)
    prompts = captions.draw(rng, words, captions.prompts(("words",), heldout=False))
    return prompts, pace.tensor(render.render(prompts, rng))
