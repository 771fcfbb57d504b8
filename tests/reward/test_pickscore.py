"""PickScore against open_clip's and transformers' own computation on PIL pictures, with small random weights."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from grpo_guard.reward.pickscore import PickScore, preprocessing
from grpo_guard.reward.pickscore_v1 import PickScoreV1
from grpo_guard.types import ConfigError, Prompt
from grpo_guard.world import captions, render

CPU = torch.device("cpu")
TEXTS = ["a cab", "b", "abba", "a cab", "cab cab"]
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def pictures(height, width, count=len(TEXTS)):
    """Smooth random 8-bit pictures, of every colour."""
    small = torch.rand(count, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    return large.mul(255).round().byte()


def prompts(texts=TEXTS):
    return [Prompt(text=text) for text in texts]


def floats(images):
    return images.float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scorer in open_clip's local format, as scripts/build_tiny.py writes it."""
    path = tmp_path_factory.mktemp("scorer")
    symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={s: i for i, s in enumerate(symbols)}, merges=[], model_max_length=16).save_pretrained(path)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16, "mlp_ratio": 2.0}
    text = {"context_length": 16, "vocab_size": len(symbols), "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**text, "eos_id": 7, "pool_type": "argmax"}}
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    model["text_cfg"]["hf_tokenizer_name"] = "."
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": HALF}))
    save_file({k: v.half().contiguous() for k, v in weights.items()}, path / "open_clip_model.safetensors")
    return path


@pytest.fixture(scope="module")
def score(folder):
    return PickScore(model=str(folder), scale=None, microbatch=2).load(CPU)


@torch.no_grad()
def reference(folder, images, texts):
    """The diagonal of open_clip's own logits, from PIL pictures."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels = torch.stack([preprocess(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in images])
    return model.eval().get_logits(pixels, open_clip.get_tokenizer(f"local-dir:{folder}")(texts))[0].diag()


@pytest.mark.parametrize(("size", "tolerance"), [((32, 32), 1e-4), ((64, 64), 0.02), ((80, 48), 0.02)])
def test_scores_are_open_clips(folder, score, size, tolerance):
    images = pictures(*size)
    expected = reference(folder, images, TEXTS)
    assert expected.std() > 0.5
    torch.testing.assert_close(score(floats(images), prompts()).total, expected, atol=tolerance, rtol=0)


def test_each_image_meets_its_own_text(score):
    images = floats(pictures(32, 32))
    alone = [score(images[i : i + 1], prompts(TEXTS[i : i + 1])).total for i in range(len(TEXTS))]
    torch.testing.assert_close(score(images, prompts()).total, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_text_is_encoded_once(score, monkeypatch):
    seen = []
    inner = open_clip.tokenizer.HFTokenizer.__call__
    monkeypatch.setattr(
        open_clip.tokenizer.HFTokenizer, "__call__", lambda self, x: (seen.append(x), inner(self, x))[1]
    )
    score(floats(pictures(32, 32)), prompts())
    assert seen == [["a cab", "b", "abba", "cab cab"]]


def test_scale_divides_and_name_is_the_key(folder, score):
    images = floats(pictures(32, 32))
    scaled = PickScore(model=str(folder), scale=26.0, microbatch=8, name="gold").load(CPU)(images, prompts())
    assert list(scaled.parts) == ["gold"]
    torch.testing.assert_close(scaled.parts["gold"] * 26, score(images, prompts()).total, atol=1e-5, rtol=1e-5)


def test_a_broken_image_fails_alone(score):
    images = floats(pictures(32, 32))
    images[1, 0, 3, 3] = torch.nan
    assert score(images, prompts()).failed.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_pixels_are_those_of_pil_and_bright_edges_do_not_overshoot(mode):
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "resize_mode": mode}
    image = torch.zeros(1, 3, 80, 64, dtype=torch.uint8)
    image[:, :, :, 31:], image[:, 1, 41:] = 255, 128
    expected = open_clip.image_transform(32, False, **plain)(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
    got = preprocessing(size=32, **plain)(floats(image))
    assert (got.min(), got.max()) == (0, 1)
    torch.testing.assert_close(got[0], expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", [PickScore, PickScoreV1])
@pytest.mark.parametrize("change", [{"scale": 0.0}, {"microbatch": 0}])
def test_bad_settings_are_refused(kind, change):
    ((key, value),) = change.items()
    with pytest.raises(ConfigError, match=f"{key}={value} is not positive"):
        kind(**{"model": "scorer_proxy", "scale": None, "microbatch": 8, **change})


@pytest.mark.parametrize("kind", [PickScore, PickScoreV1])
def test_missing_weights_are_named_in_one_line(tmp_path, kind):
    for model, said in ((str(tmp_path / "none"), "is no folder here"), (str(tmp_path), "cannot be loaded")):
        with pytest.raises(ConfigError, match=said) as caught:
            kind(model=model, scale=None, microbatch=8).load(CPU)
        assert "\n" not in str(caught.value)
        assert model in str(caught.value)


@torch.no_grad()
def test_published_format(tmp_path):
    """transformers' own logits, from PIL pictures of another size through open_clip's standard preprocessing."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = {**size, "image_size": 32, "patch_size": 8}, {**size, "vocab_size": 49408, "eos_token_id": 49407}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(tmp_path)
    images, texts = pictures(64, 48), ["a red cup", "two dogs", "a red cup", "snow", "an owl, reading"]
    preprocess = open_clip.image_transform(32, is_train=False)
    pixels = torch.stack([preprocess(Image.fromarray(np.asarray(x.permute(1, 2, 0)))) for x in images])
    expected = model(input_ids=open_clip.tokenize(texts), pixel_values=pixels).logits_per_image.diag()
    got = PickScoreV1(model=str(tmp_path), scale=None, microbatch=2).load(CPU)(floats(images), prompts(texts)).total
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("model", ["scorer_proxy", "scorer_gold"])
def test_shipped_scorers_tell_right_captions_from_wrong(model):
    rng = np.random.default_rng(9)
    asked = captions.draw(rng, 128, captions.prompts(heldout=True))
    images = floats(torch.from_numpy(render.render(asked, rng)).permute(0, 3, 1, 2))
    pairs = [(i, other) for i, other in enumerate(asked[7:] + asked[:7]) if other.text != asked[i].text]
    rows, others = [i for i, _ in pairs], [other for _, other in pairs]
    score = PickScore(model=model, scale=None, microbatch=64).load(CPU)
    right, wrong = score(images[rows], [asked[i] for i in rows]).total, score(images[rows], others).total
    assert (right > wrong).float().mean() > 0.9
