"""ImageReward against the published layers, written out anew, with small random weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from grpo_guard.reward import image_reward
from grpo_guard.types import Prompt

CPU = torch.device("cpu")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "cup",
    "two",
    "dogs",
    "##s",
    "in",
    "the",
    "snow",
]
TEXTS = ["a red cup", "two dogs in the snow", "a red cup", "the " * 50, "cups", "a cat"]
VISION, TEXT, VOCABULARY = (
    (24, 96, 3, 4),
    (32, 48, 2, 4),
    len(WORDS) + 2,
)  # encoders: width, inner width, layers, heads


def layout(vision, text, vocabulary, side, positions):
    """Return the names and shapes of the published file: BLIP's encoders, projections and MLP."""
    shapes = {"cls_token": (1, 1, vision[0]), "pos_embed": (1, side**2 + 1, vision[0])}
    shapes |= {
        "patch_embed.proj.weight": (vision[0], 3, 16, 16),
        "patch_embed.proj.bias": (vision[0],),
    }
    shapes |= norm("norm", vision[0])
    for i in range(vision[2]):
        shapes |= norm(f"blocks.{i}.norm1", vision[0]) | norm(f"blocks.{i}.norm2", vision[0])
        shapes |= dense(f"blocks.{i}.attn.qkv", vision[0], 3 * vision[0])
        shapes |= dense(f"blocks.{i}.attn.proj", vision[0], vision[0])
        shapes |= dense(f"blocks.{i}.mlp.fc1", *vision[:2]) | dense(
            f"blocks.{i}.mlp.fc2", vision[1], vision[0]
        )
    layers = {f"blip.visual_encoder.{key}": shape for key, shape in shapes.items()}
    layers |= {
        f"blip.text_encoder.{key}": shape
        for key, shape in bert(vision, text, vocabulary, positions).items()
    }
    layers |= dense("blip.vision_proj", vision[0], 256) | dense("blip.text_proj", text[0], 256)
    sizes = {0: (text[0], 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    return layers | {
        key: shape
        for i, pair in sizes.items()
        for key, shape in dense(f"mlp.layers.{i}", *pair).items()
    }


def bert(vision, text, vocabulary, positions):
    width, inner, layers, _ = text
    shapes = {
        "embeddings.position_ids": (1, positions),
        "embeddings.word_embeddings.weight": (vocabulary, width),
    }
    shapes |= {"embeddings.position_embeddings.weight": (positions, width)} | norm(
        "embeddings.LayerNorm", width
    )
    for i in range(layers):
        name = f"encoder.layer.{i}"
        for part, source in (("attention", width), ("crossattention", vision[0])):
            shapes |= dense(f"{name}.{part}.self.query", width, width)
            shapes |= dense(f"{name}.{part}.self.key", source, width)
            shapes |= dense(f"{name}.{part}.self.value", source, width)
            shapes |= dense(f"{name}.{part}.output.dense", width, width) | norm(
                f"{name}.{part}.output.LayerNorm", width
            )
        shapes |= dense(f"{name}.intermediate.dense", width, inner) | dense(
            f"{name}.output.dense", inner, width
        )
        shapes |= norm(f"{name}.output.LayerNorm", width)
    return shapes


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def dense(name, width, out):
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


class Published:
    """The published arithmetic, on weights with their published names."""

    def __init__(self, state):
        self.state = state

    def dense(self, name, x):
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x, eps):
        return layer_norm(
            x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps
        )

    def see(self, pixels):
        name = "blip.visual_encoder"
        proj = (self.state[f"{name}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        patches = conv2d(pixels[None], *proj, stride=16)[0].flatten(1).T
        x = (
            torch.cat([self.state[f"{name}.cls_token"][0], patches])
            + self.state[f"{name}.pos_embed"][0]
        )
        for i in range(VISION[2]):
            block = f"{name}.blocks.{i}"
            q, k, v = self.dense(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(
                3, dim=-1
            )
            x = x + self.dense(f"{block}.attn.proj", attend(q, k, v, VISION[3]))
            inner = gelu(self.dense(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.dense(f"{block}.mlp.fc2", inner)
        return self.norm(f"{name}.norm", x, 1e-6)

    def read(self, tokens, seen):
        """Encode a text; padding is never attended to, so it is left out."""
        name = "blip.text_encoder"
        embedded = self.state[f"{name}.embeddings.word_embeddings.weight"][tokens]
        embedded = (
            embedded + self.state[f"{name}.embeddings.position_embeddings.weight"][: len(tokens)]
        )
        x = self.norm(f"{name}.embeddings.LayerNorm", embedded, 1e-12)
        for i in range(TEXT[2]):
            layer = f"{name}.encoder.layer.{i}"
            for part, source in (("attention", None), ("crossattention", seen)):
                x = self.attention(f"{layer}.{part}", x, x if source is None else source)
            inner = self.dense(
                f"{layer}.output.dense", gelu(self.dense(f"{layer}.intermediate.dense", x))
            )
            x = self.norm(f"{layer}.output.LayerNorm", inner + x, 1e-12)
        return x

    def attention(self, name, x, source):
        q, k, v = (
            self.dense(f"{name}.self.{n}", y)
            for n, y in (("query", x), ("key", source), ("value", source))
        )
        return self.norm(
            f"{name}.output.LayerNorm",
            self.dense(f"{name}.output.dense", attend(q, k, v, TEXT[3])) + x,
            1e-12,
        )

    def score(self, tokens, pixels):
        x = self.read(tokens, self.see(pixels))[0]
        for i in (0, 2, 4, 6, 7):
            x = self.dense(f"mlp.layers.{i}", x)
        return (x[0] - 0.16717362830052426) / 1.0333394966054072


def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    shares = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (shares @ v).transpose(0, 1).flatten(1)


def tokens(text):
    """Tokenize by hand: at most 35 tokens, of which two are [CLS] and [SEP]."""
    pieces = {"cups": ["cup", "##s"], "cat": ["[UNK]"]}
    words = [piece for word in text.split() for piece in pieces.get(word, [word])]
    return torch.tensor([WORDS.index(word) for word in ["[CLS]", *words[:33], "[SEP]"]])


@pytest.fixture(scope="module")
def state():
    """Draw random weights that are large enough for pictures and texts to matter."""
    random = torch.Generator().manual_seed(4)
    shapes = layout(VISION, TEXT, VOCABULARY, side=2, positions=40)
    weights = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    gains = {
        name: 1 + value / 4
        for name, value in weights.items()
        if "norm" in name.lower() and name.endswith("weight")
    }
    large = {
        name: value * 2 / math.sqrt(value.shape[-1])
        for name, value in weights.items()
        if value.dim() == 2
    }
    return {name: value / 4 for name, value in weights.items()} | large | gains


@pytest.fixture(scope="module")
def reward(choice, state, tmp_path_factory):
    """Make the reward with a small architecture, from the published file and a tokenizer."""
    path = tmp_path_factory.mktemp("image_reward")
    torch.save(state, path / "ImageReward.pt")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vision = dict(zip(keys, VISION, strict=True)) | {"image_size": 32}
    text = dict(zip(keys, TEXT, strict=True)) | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_reward, "VISION", {**image_reward.VISION, **vision})
        patch.setattr(image_reward, "TEXT", {**image_reward.TEXT, **text})
        yield replace(
            choice("reward", "image_reward"), model=str(path), tokenizer=str(path), microbatch=4
        )


@pytest.fixture(scope="module")
def score(reward):
    return reward.load(CPU)


def prompts(texts=TEXTS):
    return [Prompt(text=text) for text in texts]


def test_the_published_layout_fits_at_full_size():
    """Every weight of the real file has a place of its shape, and no place is left empty."""
    shapes = layout((1024, 4096, 24, 16), (768, 3072, 12, 12), 30524, side=14, positions=512)
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in shapes.items()}
        ours = image_reward.Blip()
    wanted = {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    assert {
        name: tuple(value.shape) for name, value in image_reward.rename_weights(published).items()
    } == wanted
    assert ours.vision.config.num_attention_heads == 16
    assert ours.text.config.num_attention_heads == 12


@pytest.mark.parametrize("size", [(32, 32), (80, 48)])
@torch.no_grad()
def test_scores_are_those_of_the_published_layers(score, state, pictures, pil, size):
    images, published = pictures(*size, len(TEXTS)), Published(state)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [
        Resize(32, InterpolationMode.BICUBIC),
        CenterCrop(32),
        ToTensor(),
        Normalize(mean, std),
    ]
    pairs = zip(TEXTS, pil(images), strict=True)
    expected = torch.stack(
        [published.score(tokens(text), Compose(steps)(image)) for text, image in pairs]
    )
    assert expected.std() > 0.1
    rewards = score(images / 255, prompts())
    assert list(rewards.parts) == ["image_reward"]
    torch.testing.assert_close(rewards.total, expected, atol=1e-5, rtol=1e-5)


def test_each_image_meets_its_own_text_whatever_the_microbatch(reward, score, pictures):
    images = pictures(32, 32, len(TEXTS)) / 255
    alone = [score(images[i : i + 1], prompts(TEXTS[i : i + 1])).total for i in range(len(TEXTS))]
    whole = replace(reward, microbatch=64).load(CPU)(images, prompts()).total
    torch.testing.assert_close(
        score(images, prompts()).total, torch.cat(alone), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(score(images, prompts()).total, whole, atol=1e-5, rtol=1e-5)
    assert (score(images, prompts(TEXTS[1:] + TEXTS[:1])).total - whole).abs().min() > 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-2), ("bfloat16", 0.2)])
def test_encoders_may_compute_in_half_precision(reward, score, pictures, dtype, tolerance):
    images = pictures(32, 32, len(TEXTS)) / 255
    images[3, 1, 1, 1] = torch.nan
    half, exact = (
        replace(reward, dtype=dtype).load(CPU)(images, prompts()),
        score(images, prompts()),
    )
    assert half.failed.tolist() == exact.failed.tolist() == [i == 3 for i in range(len(TEXTS))]
    assert half.total.dtype == torch.float32
    assert (
        0
        < (half.total - exact.total)[~half.failed].abs().max()
        < tolerance * exact.total[~exact.failed].std()
    )


def test_a_bad_file_is_refused(reward, state, check_refusal, damaged):
    check_refusal(
        replace(reward, model=str(damaged("ImageReward.pt", state))),
        "cannot be loaded",
        "ImageReward.pt",
    )


def test_weights_of_another_depth_are_refused(reward, state, check_refusal, tmp_path):
    name = "blip.visual_encoder.blocks.3.norm1.weight"
    torch.save({**state, name: torch.zeros(24)}, tmp_path / "ImageReward.pt")
    check_refusal(
        replace(reward, model=str(tmp_path)), "Unexpected key(s)", "vision.encoder.layers.3"
    )
    torch.save(
        {key: state[key] for key in state if ".blocks.2." not in key}, tmp_path / "ImageReward.pt"
    )
    check_refusal(replace(reward, model=str(tmp_path)), "Missing key(s)", "vision.encoder.layers.2")


def test_another_tokenizer_is_refused(reward, check_refusal, offline, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS[:-1]))
    check_refusal(
        replace(reward, tokenizer=str(tmp_path)),
        f"has {VOCABULARY - 1} tokens, not {VOCABULARY}",
        "vocab.txt",
    )
    check_refusal(
        replace(reward, tokenizer=f"{tmp_path}/none"),
        f"tokenizer={tmp_path}/none is no folder here",
    )
    check_refusal(
        replace(reward, tokenizer="google-bert/bert-base-uncased"), "put vocab.txt into a folder"
    )
