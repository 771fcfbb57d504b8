"""CLIP rewards against open_clip and transformers on PIL pictures, with small random weights."""

import functools
import json
import weakref
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub.errors import HTTPError
from open_clip.pretrained import get_pretrained_cfg
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pixels
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from grpo_guard.reward import clip_formats
from grpo_guard.reward.clip_formats import build_preprocess
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt
from grpo_guard.world import captions, render

CPU = torch.device("cpu")
TEXTS = ["a cab", "b", "abba", "a cab", "cab cab"]
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
SIZES = [(32, 32), (80, 48), (20, 28)]
CLOSE = {"atol": 1e-5, "rtol": 1e-6}
PUBLISHED = ("pickscore_v1", "clipscore", "hpsv2")


def prompts(texts=TEXTS):
    return [Prompt(text=text) for text in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a scorer in open_clip's local format, as scripts/build_tiny.py does."""
    path = tmp_path_factory.mktemp("scorer")
    symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(
        vocab={s: i for i, s in enumerate(symbols)}, merges=[], model_max_length=16
    ).save_pretrained(path)
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "mlp_ratio": 2.0,
    }
    text = {"context_length": 16, "vocab_size": len(symbols), "width": 32, "heads": 2, "layers": 2}
    model = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": {**text, "eos_id": 7, "pool_type": "argmax"},
    }
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    model["text_cfg"]["hf_tokenizer_name"] = "."
    (path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": HALF})
    )
    save_file(
        {k: v.half().contiguous() for k, v in weights.items()}, path / "open_clip_model.safetensors"
    )
    return path


@pytest.fixture(scope="module")
def component(choice, folder):
    return replace(choice("reward", "pickscore"), model=str(folder), microbatch=2)


@pytest.fixture(scope="module")
def score(component):
    return component.load(CPU)


@pytest.fixture(scope="module")
def published(choice, tiny, tiny_state, tmp_path_factory):
    """Make a published reward, with a small model in the format that its YAML reads."""
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision, text = (
        {**size, "image_size": 32, "patch_size": 8},
        {**size, "vocab_size": 49408, "eos_token_id": 49407},
    )
    path = tmp_path_factory.mktemp("published")
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(path)
    save_file(dict(tiny_state), path / "open_clip_model.safetensors")
    torch.save({"state_dict": tiny_state, "epoch": 1}, path / "HPS_v2.1_compressed.pt")

    @functools.cache
    def make(name):
        reward = choice("reward", name)
        small = {} if name == "pickscore_v1" else {"architecture": tiny}
        return replace(
            reward, model=str(path), microbatch=2, read=functools.partial(reward.read, **small)
        )

    return make


@pytest.fixture(scope="module")
def scorer(published):
    """Load a published reward with some settings changed."""
    return functools.cache(lambda name, **changes: replace(published(name), **changes).load(CPU))


@torch.no_grad()
def own_logits(folder, images, texts):
    """Compute the diagonal of open_clip's logits, with its own loader and transform."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    x = torch.stack([preprocess(image) for image in images])
    return (
        model.eval().get_logits(x, open_clip.get_tokenizer(f"local-dir:{folder}")(texts))[0].diag()
    )


@torch.no_grad()
def pickscore_v1(folder, images, texts):
    """Compute transformers' logits, divided by 26 as in Flow-GRPO."""
    x = torch.stack([open_clip.image_transform(32, is_train=False)(image) for image in images])
    model = CLIPModel.from_pretrained(folder).eval()
    return model(input_ids=open_clip.tokenize(texts), pixel_values=x).logits_per_image.diag() / 26


@torch.no_grad()
def clipscore(folder, images, texts):
    """Compute 2.5 max(cos, 0) of open_clip's features."""
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-clip", str(folder / "open_clip_model.safetensors")
    )
    x = torch.stack([preprocess(image) for image in images])
    a, b = (
        model.eval().encode_image(x).double(),
        model.encode_text(open_clip.tokenize(texts)).double(),
    )
    return (2.5 * ((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).clip(0)).float()


@functools.cache
def hps_model(folder):
    model = open_clip.create_model("tiny-clip", output_dict=True).eval()
    model.load_state_dict(torch.load(folder / "HPS_v2.1_compressed.pt")["state_dict"])
    return model, open_clip.get_tokenizer("ViT-H-14")


@torch.no_grad()
def hpsv2(folder, images, texts):
    """Score one picture at a time: resize floats to 32 px, pad with 0, multiply the features."""
    (model, tokenize), scores = hps_model(folder), []
    for image, text in zip(images, texts, strict=True):
        scale = 32 / max(image.size)
        x = pixels.to_tensor(image)
        if scale != 1:
            x = pixels.resize(
                x, [round(x.shape[1] * scale), round(x.shape[2] * scale)], InterpolationMode.BICUBIC
            )
        down, right = 32 - x.shape[1], 32 - x.shape[2]
        x = pixels.pad(x, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
        x = pixels.normalize(x, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        output = model(x[None], tokenize([text]))
        scores.append((output["image_features"] @ output["text_features"].T)[0, 0])
    return torch.stack(scores)


@pytest.mark.parametrize("size", SIZES)
def test_scores_are_open_clips(folder, score, pictures, pil, size):
    images = pictures(*size, 5)
    expected = own_logits(folder, pil(images), TEXTS)
    assert expected.std() > 0.5
    torch.testing.assert_close(score(images / 255, prompts()).total, expected, **CLOSE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("expect", [pickscore_v1, clipscore, hpsv2])
def test_scores_are_the_published_ones(published, scorer, pictures, pil, expect, size):
    texts = [
        "a red cup",
        "two dogs",
        "a red cup",
        "snow",
        "an owl, reading",
        "no",
        "fog",
        "A 'tall' ship!",
    ]
    images, name = pictures(*size, len(texts)), expect.__name__
    expected = expect(Path(published(name).model), pil(images), texts)
    assert expected.std() > 1e-3
    rewards = scorer(name)(images / 255, prompts(texts))
    assert list(rewards.parts) == [published(name).name]
    torch.testing.assert_close(rewards.total, expected, **CLOSE)


def test_clipscore_is_never_negative(choice):
    measure, cosine = choice("reward", "clipscore").measure, torch.tensor([-0.4, 0.0, 0.2, 1.0])
    assert measure(cosine, 100.0).tolist() == pytest.approx([0, 0, 0.5, 2.5])


def test_openai_weights_are_read_as_open_clip_publishes_them(choice):
    """File, activation and preprocessing agree with open_clip's list of checkpoints."""
    listed = get_pretrained_cfg("ViT-L-14", "openai")
    for read in (choice("reward", "clipscore").read, choice("reward", "aesthetic").clip):
        assert read.keywords["architecture"] == "ViT-L-14-quickgelu"
        assert listed["quick_gelu"]
        assert read.keywords["preprocess"].func is clip_formats.shortest_side
        assert read.keywords.get("model", choice("reward", "clipscore").model) == listed[
            "hf_hub"
        ].removesuffix("/")
    assert (listed["mean"], listed["std"]) == (
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
    )


def test_each_image_meets_its_own_text(score, pictures):
    images = pictures(32, 32, 5) / 255
    alone = [score(images[i : i + 1], prompts(TEXTS[i : i + 1])).total for i in range(len(TEXTS))]
    torch.testing.assert_close(score(images, prompts()).total, torch.cat(alone), **CLOSE)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("microbatch", [1, 64])
def test_the_microbatch_changes_nothing(scorer, pictures, name, microbatch):
    images, batch = pictures(40, 30, 5) / 255, prompts()
    expected = scorer(name)(images, batch).total
    torch.testing.assert_close(
        scorer(name, microbatch=microbatch)(images, batch).total, expected, **CLOSE
    )


def test_a_text_is_encoded_once(score, pictures, monkeypatch):
    seen = []
    inner = open_clip.CLIP.encode_text
    monkeypatch.setattr(
        open_clip.CLIP, "encode_text", lambda self, x: (seen.append(x), inner(self, x))[1]
    )
    score(pictures(32, 32, 5) / 255, prompts())
    assert [len(tokens) for tokens in seen] == [2, 2]
    assert len(torch.cat(seen).unique(dim=0)) == 4


def test_scale_divides_and_name_is_the_key(component, score, pictures):
    images = pictures(32, 32, 5) / 255
    scaled = replace(component, scale=26.0, name="gold").load(CPU)(images, prompts())
    assert list(scaled.parts) == ["gold"]
    torch.testing.assert_close(scaled.parts["gold"] * 26, score(images, prompts()).total, **CLOSE)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_towers_may_compute_in_half_precision(scorer, pictures, name, dtype, tolerance):
    images, batch = pictures(40, 30, 5) / 255, prompts()
    exact, rounded = (
        scorer(name)(images, batch).total,
        scorer(name, dtype=dtype)(images, batch).total,
    )
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=tolerance * exact.abs().max().item(), rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["pickscore", *PUBLISHED])
def test_both_towers_are_of_the_dtype_and_the_logit_scale_is_never_rounded(
    published, component, name
):
    reward = component if name == "pickscore" else published(name)
    exact, half = (
        reward.read(model=reward.model, device=CPU, dtype=d)
        for d in (torch.float32, torch.bfloat16)
    )
    assert (
        half.text(half.tokenize(["a cab"])).dtype
        == half.image(torch.zeros(1, 3, 32, 32)).dtype
        == torch.bfloat16
    )
    assert half.gain == exact.gain
    assert half.width == half.image(torch.zeros(1, 3, 32, 32)).shape[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_broken_image_fails_alone(scorer, pictures, name):
    images = pictures(32, 32, 5) / 255
    images[1, 0, 3, 3] = torch.nan
    assert scorer(name)(images, prompts()).failed.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_pixels_are_those_of_pil(pictures, pil, mode):
    images = pictures(80, 61, 2)
    images[0, :, :, 31:], images[0, 1, 41:] = 255, 128
    expected = [
        open_clip.image_transform(32, is_train=False, resize_mode=mode)(image)
        for image in pil(images)
    ]
    assert torch.equal(
        build_preprocess(size=32, resize_mode=mode)(images / 255), torch.stack(expected)
    )


def test_images_are_seen_in_8_bits(pictures):
    images = pictures(32, 32, 2) / 255
    shaken = images + torch.rand_like(images).sub(0.5).mul(0.9 / 255)
    beyond = torch.where(images == 1, 1.5, torch.where(images == 0, -0.5, images))
    for prepare in (clip_formats.shortest_side(24), clip_formats.longest_side(24)):
        assert torch.equal(prepare(shaken), prepare(images))
        assert torch.equal(prepare(beyond), prepare(images))


@pytest.mark.parametrize("name", ["pickscore", *PUBLISHED, "aesthetic", "image_reward"])
def test_bad_settings_are_refused(choice, name):
    with pytest.raises(ConfigError, match="microbatch=0 is not positive"):
        replace(choice("reward", name), microbatch=0)


def test_a_scale_of_nothing_is_refused(choice):
    with pytest.raises(ConfigError, match=r"scale=0.0 is not positive"):
        replace(choice("reward", "pickscore"), scale=0.0)


FILES = {
    "pickscore_v1": "config.json and model.safetensors",
    "clipscore": "open_clip_model.safetensors",
    "hpsv2": "HPS_v2.1_compressed.pt",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "image_reward": "ImageReward.pt",
}


@pytest.mark.parametrize("name", ["pickscore", *FILES])
def test_a_folder_that_is_not_there(choice, check_refusal, tmp_path, name):
    check_refusal(
        replace(choice("reward", name), model=str(tmp_path / "none")),
        f"={tmp_path}/none is no folder here",
    )


@pytest.mark.parametrize("name", FILES)
def test_without_a_network_the_files_are_named(choice, check_refusal, offline, name):
    check_refusal(
        choice("reward", name),
        "cannot be loaded",
        f"put {FILES[name]} into a folder and give model=that folder",
    )


def test_a_dropped_connection_is_named(choice, check_refusal, monkeypatch):
    def fail(*_):
        raise HTTPError("peer closed connection")

    monkeypatch.setattr(clip_formats, "hf_hub_download", fail)
    check_refusal(choice("reward", "hpsv2"), "cannot be loaded (peer closed connection)")


@pytest.mark.parametrize("name", FILES)
def test_an_empty_folder(choice, check_refusal, tmp_path, name):
    check_refusal(
        replace(choice("reward", name), model=str(tmp_path)), f"model={tmp_path}", FILES[name]
    )


def test_the_hub_is_asked_for_the_file(published, choice, monkeypatch):
    requests, folder = [], published("hpsv2").model
    fetch = lambda *arguments: (requests.append(arguments), f"{folder}/{arguments[1]}")[1]  # noqa: E731
    monkeypatch.setattr(clip_formats, "hf_hub_download", fetch)
    replace(published("hpsv2"), model="xswu/HPSv2").load(CPU)
    assert requests == [("xswu/HPSv2", "HPS_v2.1_compressed.pt")]


@pytest.mark.parametrize("name", ["clipscore", "hpsv2"])
def test_a_bad_file_is_refused(published, check_refusal, damaged, tiny_state, name):
    check_refusal(
        replace(published(name), model=str(damaged(FILES[name], tiny_state))),
        "cannot be loaded",
        FILES[name],
    )


def test_weights_of_another_architecture_are_refused(published, check_refusal, tmp_path):
    """They are read from a folder of their own: a model that is in use is not read again."""
    reward = published("hpsv2")
    reward = replace(reward, model=str(copytree(reward.model, tmp_path / "copy")))
    deep = json.loads(json.dumps(open_clip.get_model_config("tiny-clip")))
    deep["vision_cfg"]["layers"] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda _: deep)
        check_refusal(reward, "Unexpected key(s)", "visual.transformer.resblocks.1")
    wide = json.loads(json.dumps(deep))
    wide["vision_cfg"].update(layers=2, image_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_model_config", lambda _: wide)
        check_refusal(reward, "visual.positional_embedding", "size mismatch")


def test_an_unknown_architecture_is_refused(published, check_refusal):
    reward = published("hpsv2")
    check_refusal(
        replace(reward, read=functools.partial(reward.read, architecture="ViT-Q")),
        "architecture=ViT-Q is unknown",
    )


def change(path, edit):
    state = load_file(path / "model.safetensors")
    edit(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda state: state.pop("visual_projection.weight"),
            "1 weights such as visual_projection.weight",
        ),
        (lambda state: state.update(more=torch.zeros(1)), "1 weights such as more"),
        (
            lambda state: state.update({"visual_projection.weight": torch.zeros(3, 32)}),
            "cannot be loaded",
        ),
    ],
)
def test_a_clip_model_with_gaps_is_refused(published, check_refusal, tmp_path, edit, words):
    path = copytree(published("pickscore_v1").model, tmp_path / "copy")
    change(path, edit)
    check_refusal(replace(published("pickscore_v1"), model=str(path)), words)


def test_position_ids_of_old_checkpoints_are_let_through(scorer, published, pictures, tmp_path):
    path = copytree(published("pickscore_v1").model, tmp_path / "copy")
    change(
        path,
        lambda state: state.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}),
    )
    images = pictures(32, 32, 5) / 255
    old, new = scorer("pickscore_v1", model=str(path)), scorer("pickscore_v1")
    assert torch.equal(old(images, prompts()).total, new(images, prompts()).total)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json"])
@pytest.mark.parametrize("left", [100, None])
def test_a_damaged_open_clip_folder_is_refused(component, check_refusal, tmp_path, file, left):
    path = copytree(component.model, tmp_path / "copy")
    whole = (path / file).read_bytes()
    (path / file).unlink()
    if left:
        (path / file).write_bytes(whole[:left])
    check_refusal(replace(component, model=str(path)), f"model={path} cannot be loaded", file)


@pytest.mark.parametrize(
    "name", ["pickscore", "pickscore_gold", "pickscore_quarter", "pickscore_terse"]
)
def test_shipped_scorers_tell_right_captions_from_wrong(choice, name):
    rng = np.random.default_rng(9)
    drawn = captions.draw_captions(rng, 128, captions.all_prompts(heldout=True))
    images = torch.from_numpy(render.render(drawn, rng)).permute(0, 3, 1, 2) / 255
    pairs = [
        (i, other) for i, other in enumerate(drawn[7:] + drawn[:7]) if other.text != drawn[i].text
    ]
    rows, others = [i for i, _ in pairs], [other for _, other in pairs]
    score = choice("reward", name).load(CPU)
    right, wrong = (
        score(images[rows], [drawn[i] for i in rows]).total,
        score(images[rows], others).total,
    )
    assert (right > wrong).float().mean() > 0.9


def test_scorers_of_one_model_share_it_as_long_as_one_of_them_is_there(choice, published, tmp_path):
    """All that use OpenAI's ViT-L/14 name the same file, which here holds a small model."""
    reward = published("clipscore")
    folder = copytree(reward.model, tmp_path / "copy")
    small = {"model": str(folder), "architecture": reward.read.keywords["architecture"]}
    readers = [
        choice("reward", "clipscore").read,
        choice("reward", "aesthetic").clip,
        choice("reward", "diversity_photos").clip,
        choice("reward", "geneval_coco").colors.clip,
    ]
    float32, float16 = (
        [read(**small, device=CPU, dtype=dtype) for read in readers]
        for dtype in (torch.float32, torch.float16)
    )
    assert {*map(id, float32)} == {id(float32[0])}
    assert float32[0] is not float16[0]
    held = weakref.ref(float32[0])
    float32.clear()
    assert held() is None
