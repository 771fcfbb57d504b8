"""Mask2Former and CLIP for GenEval: tiny models in published formats, against published rules."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)
from torchvision.transforms.v2.functional import normalize, resize
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from grpo_guard import assets
from grpo_guard.data.geneval import parse_geneval
from grpo_guard.reward._detection import Segment
from grpo_guard.reward.clip_colors import COLOR_CLASSES, cut_out
from grpo_guard.reward.mask2former import COCO_NAMES, Mask2Former
from grpo_guard.schema import ConfigError
from grpo_guard.types import Clause, Prompt
from grpo_guard.world.detection import Detection

CPU = torch.device("cpu")
DARKNET = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
}
OFFICIAL = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
TELEVISION = OFFICIAL | {"tv": "television", "hair drier": "hair dryer"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def labels(called):
    return {i: called.get(name, name) for i, name in enumerate(COCO_NAMES)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Write a tiny Mask2Former whose class probabilities exceed a threshold of 0.3."""
    torch.manual_seed(6)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages
    )
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "num_attention_heads": 2,
    }
    depths = {
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
    }
    config = Mask2FormerConfig(
        backbone_config=swin, num_queries=12, id2label=labels(DARKNET), **sizes, **depths
    )
    model = Mask2FormerForUniversalSegmentation(config)
    large = {"class_predictor.weight": 60, "mask_embedder.2.0.weight": 30}
    for name, value in model.named_parameters():
        value.data.mul_(next((gain for end, gain in large.items() if name.endswith(end)), 1))
    path = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def detector(folder):
    return Mask2Former(
        model=str(folder), side=None, threshold=0.3, most=16, microbatch=4, dtype="float32"
    )


def describe(things):
    """Return what must agree exactly; scores are compared separately."""
    return [(thing.name, thing.box, thing.mask.tolist()) for thing in things]


@torch.no_grad()
def apply_benchmark_rule(folder, image, size_seen, threshold):
    """Apply the benchmark's rule to an 8-bit image, one query and one class at a time."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder)
    pixels = normalize(resize(image, size_seen) / 255, MEAN, STD)
    output, segments = model(pixels[None]), []
    for classes, mask in zip(
        output.class_queries_logits[0].softmax(1), output.masks_queries_logits[0], strict=True
    ):
        for size in (size_seen, image.shape[1:]):
            mask = torch.nn.functional.interpolate(mask[None, None], size, mode="bilinear")[0, 0]
        inside = mask > 0
        scores = classes * mask[inside].sigmoid().mean()
        rows, columns = (inside.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        for name, score in zip(COCO_NAMES, scores.tolist()[:-1], strict=True):
            if score > threshold:
                box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                cut = inside[box[1] : box[3], box[0] : box[2]]
                segments.append(
                    Segment(name=name, color="", box=tuple(map(float, box)), score=score, mask=cut)
                )
    return sorted(segments, key=lambda thing: -thing.score)


@pytest.mark.parametrize(
    ("size", "side", "size_seen"),
    [((64, 64), None, (64, 64)), ((50, 90), None, (64, 64)), ((50, 90), 100, (96, 192))],
)
def test_objects_are_found_by_the_published_rule(detector, folder, pictures, size, side, size_seen):
    images = pictures(*size, 3)
    detections = replace(detector, side=side, threshold=0.2).load(CPU)(images / 255)
    rule = [apply_benchmark_rule(folder, image, list(size_seen), 0.2) for image in images]
    assert sum(map(len, rule)) >= 5
    for things, wanted in zip(detections, rule, strict=True):
        assert describe(things) == describe(wanted)
        assert [t.score for t in things] == pytest.approx([t.score for t in wanted], abs=1e-5)


@torch.no_grad()
def post_process(folder, images, threshold):
    """Yield (kind, score, outline) of objects by transformers' post-processing, at its 384 px."""
    model, processor = (
        Mask2FormerForUniversalSegmentation.from_pretrained(folder),
        Mask2FormerImageProcessor(),
    )
    output = model(normalize(images / 255, MEAN, STD))
    pictures = processor.post_process_instance_segmentation(
        output, threshold=threshold, return_binary_maps=True
    )
    for picture in pictures:
        facts = zip(picture["segments_info"], picture["segmentation"], strict=True)
        things = [
            (COCO_NAMES[fact["label_id"]], fact["score"], outline.bool()) for fact, outline in facts
        ]
        yield sorted(things, key=lambda thing: -thing[1])


def test_objects_are_those_of_transformers_own_post_processing(detector, folder, pictures):
    images = pictures(384, 384, 2)
    rule = list(post_process(folder, images, 0.3))
    detections = replace(detector, side=384).load(CPU)(images / 255)
    assert sum(map(len, rule)) >= 5
    for things, wanted in zip(detections, rule, strict=True):
        assert [t.name for t in things] == [name for name, _, _ in wanted]
        assert [t.score for t in things] == pytest.approx(
            [score for _, score, _ in wanted], abs=1e-5
        )
        for thing, (_, _, outline) in zip(things, wanted, strict=True):
            x0, y0, x1, y1 = map(int, thing.box)
            whole = torch.zeros(384, 384, dtype=torch.bool)
            whole[y0:y1, x0:x1] = thing.mask
            assert torch.equal(whole, outline)


def test_the_longer_side_is_bounded_as_the_benchmark_does(detector, pictures):
    """The bound is 5/3 of the shorter side, rounded up to a multiple of 32: 60 -> 100 -> 128."""
    processor = replace(detector, side=60)._load_processor()
    assert processor(images=pictures(20, 80, 1), return_tensors="pt")["pixel_values"].shape[2:] == (
        32,
        128,
    )
    assert replace(detector, side=800)._load_processor().size["longest_edge"] == 1333


def test_each_picture_is_seen_by_itself_whatever_the_microbatch(detector, pictures):
    images = pictures(64, 64, 5) / 255
    alone = [replace(detector, microbatch=1).load(CPU)(image[None])[0] for image in images]
    assert len({str([(t.name, t.box) for t in things]) for things in alone}) > 1
    for microbatch in (2, 8):
        detections = replace(detector, microbatch=microbatch).load(CPU)(images)
        assert list(map(describe, detections)) == list(map(describe, alone))
        scores = [[t.score for t in things] for things in detections]
        assert scores == [pytest.approx([t.score for t in things], abs=1e-5) for things in alone]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_detector_may_compute_in_half_precision(detector, pictures, dtype):
    images = pictures(64, 64, 3) / 255
    pairs = zip(
        replace(detector, dtype=dtype).load(CPU)(images), detector.load(CPU)(images), strict=True
    )
    for half, exact in pairs:
        assert sorted(t.name for t in half) == sorted(t.name for t in exact)
        assert [t.score for t in half] == pytest.approx([t.score for t in exact], abs=0.1)
        assert [t.score for t in half] != [t.score for t in exact]


class PlantedModel(torch.nn.Module):
    """Outputs these objects (name, probability, box) for every picture of 64 px."""

    dtype, device = torch.float32, CPU

    def __init__(self, objects, names=(*COCO_NAMES, "wall")):
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(names)))
        chances = torch.full((len(objects), len(names) + 1), 1e-9)
        self.masks = torch.full((len(objects), 64, 64), -20.0)
        for query, (name, chance, (x0, y0, x1, y1)) in enumerate(objects):
            chances[query, [*names, "none"].index(name)] = chance
            chances[query, -1] += 1 - chance
            self.masks[query, y0:y1, x0:x1] = 20.0
        self.classes = chances.log()

    def forward(self, pixel_values):
        count = len(pixel_values)
        classes, masks = self.classes.expand(count, -1, -1), self.masks.expand(count, -1, -1, -1)
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.fixture
def detect_planted(monkeypatch, detector):
    """Detect objects that the model is made to output."""

    def see(objects, **changes):
        monkeypatch.setattr(Mask2Former, "_load_model", lambda self: PlantedModel(objects))
        detections = replace(detector, **changes).load(CPU)(torch.zeros(1, 3, 64, 64))
        return [(thing.name, round(thing.score, 3), thing.box) for thing in detections[0]]

    return see


BOX, OTHER = (10, 20, 30, 25), (0, 0, 64, 64)


def test_thresholds_are_exceeded_not_met(detect_planted):
    objects = [
        ("dog", 0.29, BOX),
        ("cat", 0.5, OTHER),
        ("cow", 0.31, BOX),
        ("none", 0.99, BOX),
        ("wall", 0.99, BOX),
    ]
    assert detect_planted(objects) == [("cat", 0.5, OTHER), ("cow", 0.31, BOX)]
    assert detect_planted(objects, threshold=0.4) == [("cat", 0.5, OTHER)]
    assert detect_planted(objects, threshold=0.6) == []


def test_an_empty_mask_is_no_object(detect_planted):
    assert detect_planted([("dog", 0.9, (5, 5, 5, 9))], threshold=0.0) == []


def test_of_each_kind_the_most_certain_are_kept(detect_planted):
    dogs = [("dog", 0.4 + i / 100, (i, 0, i + 1, 3)) for i in range(20)]
    detections = detect_planted([*dogs, ("cat", 0.35, BOX)])
    assert [name for name, _, _ in detections] == ["dog"] * 16 + ["cat"]
    assert [box[0] for _, _, box in detections[:16]] == list(range(19, 3, -1))
    assert [box[0] for _, _, box in detect_planted(dogs, most=2)] == [19, 18]


def test_objects_may_overlap_and_there_may_be_none(detect_planted):
    assert detect_planted([("dog", 0.9, BOX), ("dog", 0.8, BOX)]) == [
        ("dog", 0.9, BOX),
        ("dog", 0.8, BOX),
    ]
    assert detect_planted([("none", 0.0, BOX)]) == []


def test_padding_of_the_processor_is_switched_off(detector, folder, pictures, tmp_path):
    """Otherwise boxes would refer to the padded picture."""
    images = pictures(64, 64, 2) / 255
    copy_folder(folder, tmp_path)
    Mask2FormerImageProcessor(
        do_resize=False, pad_size={"height": 96, "width": 128}
    ).save_pretrained(tmp_path)
    detections, same = (
        replace(detector, model=str(p)).load(CPU)(images) for p in (tmp_path, folder)
    )
    assert list(map(describe, detections)) == list(map(describe, same))


def test_numbers_that_are_not_finite_stop_the_run(detect_planted):
    with pytest.raises(
        ConfigError, match="dtype=float32 is too narrow for this detector; choose float32"
    ):
        detect_planted([("dog", float("nan"), BOX)])


@pytest.mark.parametrize(
    "called", [{}, OFFICIAL, DARKNET, TELEVISION, {"cell phone": "cell_phone", "person": "Person "}]
)
def test_names_are_genevals_however_a_checkpoint_calls_them(monkeypatch, detector, called):
    names = list(labels(called).values())
    model = PlantedModel([(name, 0.9, BOX) for name in names], names)
    monkeypatch.setattr(Mask2Former, "_load_model", lambda self: model)
    detections = detector.load(CPU)(torch.zeros(1, 3, 64, 64))[0]
    assert sorted(thing.name for thing in detections) == sorted(COCO_NAMES)
    assert len(set(COCO_NAMES)) == 80
    assert [COCO_NAMES[i] for i in (0, 9, 32, 60, 64, 65, 66, 79)] == [
        "person",
        "traffic light",
        "sports ball",
        "dining table",
        "computer mouse",
        "tv remote",
        "computer keyboard",
        "toothbrush",
    ]


def copy_folder(folder, path, **config):
    """Copy the folder, with some keys of config.json changed."""
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | config))
    return path


def test_weights_of_other_kinds_are_refused(detector, folder, check_refusal, tmp_path):
    rooms = {
        str(i): name for i, name in labels({"tv": "painting", "toothbrush": "chandelier"}).items()
    }
    path = copy_folder(folder, tmp_path, id2label=rooms, label2id={})
    words = (
        "knows no tv, toothbrush (2 of COCO's 80 kinds are missing)",
        "give instance weights of COCO",
    )
    check_refusal(replace(detector, model=str(path)), f"model={path}", *words)


def change_weights(change):
    """Rewrite the weights of a folder."""

    def damage(path):
        state = load_file(path / "model.safetensors")
        change(state)
        save_file(state, path / "model.safetensors", {"format": "pt"})

    return damage


def cut(path):
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])


BAD = {
    "truncated": (cut, "cannot be loaded"),
    "empty": (lambda path: (path / "model.safetensors").write_bytes(b""), "cannot be loaded"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "cannot be loaded"),
    "no config": (lambda path: (path / "config.json").unlink(), "cannot be loaded"),
    "no processor": (lambda path: (path / "preprocessor_config.json").unlink(), "cannot be loaded"),
    "no JSON": (lambda path: (path / "config.json").write_text("<html>"), "cannot be loaded"),
    "another shape": (
        change_weights(lambda state: state.update({"class_predictor.bias": torch.zeros(7)})),
        "cannot be loaded",
    ),
    "a weight is missing": (
        change_weights(lambda state: state.pop("class_predictor.bias")),
        "does not fit its config.json (1 weights such as class_predictor.bias)",
    ),
    "one too many": (
        change_weights(lambda state: state.update(head=torch.zeros(3))),
        "(1 weights such as head)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_folder_is_refused(detector, folder, check_refusal, tmp_path, name):
    damage, words = BAD[name]
    damage(copy_folder(folder, tmp_path))
    check_refusal(
        replace(detector, model=str(tmp_path)), f"model={tmp_path}", words, "model.safetensors"
    )


def test_a_model_that_is_not_there_is_refused(detector, check_refusal, offline, tmp_path):
    check_refusal(
        replace(detector, model=f"{tmp_path}/none"), f"model={tmp_path}/none is no folder here"
    )
    check_refusal(
        replace(detector, model="facebook/mask2former-swin-small-coco-instance"),
        "cannot be loaded",
        "config.json",
    )


def test_buffers_of_older_checkpoints_do_no_harm(detector, folder, pictures, tmp_path):
    path, old = copy_folder(folder, tmp_path), {"encoder.relative_position_index": torch.zeros(3)}
    change_weights(lambda state: (state.pop("criterion.empty_weight"), state.update(old)))(path)
    images = pictures(64, 64, 2) / 255
    detections, same = (replace(detector, model=str(p)).load(CPU)(images) for p in (path, folder))
    assert list(map(describe, detections)) == list(map(describe, same))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": 8}, "side=8 is too small"),
        ({"threshold": 1.0}, "threshold=1.0 is outside"),
        ({"most": 0}, "most=0 is not positive"),
        ({"microbatch": 0}, "microbatch=0 is not positive"),
    ],
)
def test_settings_that_cannot_be_used(detector, change, words):
    with pytest.raises(ConfigError, match=words):
        replace(detector, **change)


@pytest.fixture(scope="session")
def decided(tiny_state):
    """Scale random weights so that texts and pictures matter."""
    large = {
        "token_embedding.weight": 100,
        "visual.class_embedding": 0,
        "visual.positional_embedding": 0,
    }
    large |= {
        key: 10
        for key in tiny_state
        if key.startswith("visual.transformer") and key.endswith("proj.weight")
    }
    return {key: value * large.get(key, 1) for key, value in tiny_state.items()}


@pytest.fixture(scope="session")
def colors(choice, tiny, decided, tmp_path_factory):
    """Make the published choice with a small CLIP of the same format."""
    path = tmp_path_factory.mktemp("clip")
    save_file(decided, path / "open_clip_model.safetensors")
    published = choice("reward", "geneval_coco").colors
    clip = partial(published.clip, model=str(path), architecture=tiny)
    return replace(published, clip=clip, microbatch=3)


def things(count, size):
    """Make objects with random outlines in random boxes."""
    random = torch.Generator().manual_seed(3)
    segments = []
    for _ in range(count):
        x0, y0 = (torch.rand(2, generator=random) * torch.tensor(size[::-1]) * 0.5).int().tolist()
        x1, y1 = x0 + size[1] // 3, y0 + size[0] // 2
        mask = torch.rand(y1 - y0, x1 - x0, generator=random) > 0.5
        name = ("cup", "dog", "wine glass")[len(segments) % 3]
        segments.append(Segment(name=name, color="", box=(x0, y0, x1, y1), score=0.9, mask=mask))
    return segments


def cut_out_with_pillow(picture, thing):
    """Cut out an object with Pillow, as the benchmark does."""
    whole = Image.new("1", picture.size)
    whole.paste(Image.fromarray(thing.mask.numpy()), tuple(map(int, thing.box[:2])))
    return Image.composite(picture, Image.new("RGB", picture.size, "#999"), whole).crop(thing.box)


def test_the_background_is_grey_to_the_pixel(pictures, pil):
    images = pictures(40, 60, 6)
    for image, picture, thing in zip(images, pil(images), things(6, (40, 60)), strict=True):
        crop = cut_out(image / 255, thing).mul(255).round().byte()
        assert np.array_equal(
            crop.permute(1, 2, 0).numpy(), np.asarray(cut_out_with_pillow(picture, thing))
        )
        assert {153} == set(crop[:, ~thing.mask].unique().tolist())


def test_without_an_outline_the_box_is_kept(pictures):
    image = pictures(40, 60, 1)[0] / 255
    thing = Detection(name="cup", color="", box=(-3.0, 4.2, 20.5, 70.0), score=0.5)
    assert torch.equal(cut_out(image, thing), image[:, 4:, :21])


@torch.no_grad()
def classify(tiny, state, pairs):
    """Classify each (cut-out, name) as the benchmark does, by plain open_clip."""
    model, tokenize = open_clip.create_model(tiny), open_clip.get_tokenizer(tiny)
    model.load_state_dict(state)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = Compose(
        [Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(), Normalize(mean, std)]
    )
    colors_of_pairs = []
    for crop, name in pairs:
        embedding, scores = model.encode_image(steps(crop)[None], normalize=True)[0], {}
        for color in COLOR_CLASSES:
            called = (f"{color} {name}", f"{color}-colored {name}", f"{color} object")
            texts = [f"a photo of a {what}" for what in called]
            text = model.encode_text(tokenize(texts), normalize=True).mean(0)
            scores[color] = (embedding @ text / text.norm()).item()
        colors_of_pairs.append(max(scores, key=scores.get))
    return colors_of_pairs


def test_colours_are_those_of_plain_open_clip(colors, tiny, decided, pictures, pil):
    images, seen = pictures(40, 60, 4), things(14, (40, 60))
    rows = [i % 4 for i in range(14)]
    crops = [
        cut_out_with_pillow(pil(images)[row], thing) for row, thing in zip(rows, seen, strict=True)
    ]
    rule = classify(tiny, decided, zip(crops, [thing.name for thing in seen], strict=True))
    queries = list(zip(rows, seen, strict=True))
    assert len(set(rule)) >= 3
    assert colors.load(CPU)(images / 255, queries) == rule
    assert replace(colors, microbatch=64).load(CPU)(images / 255, queries) == rule
    assert colors.load(CPU)(images / 255, queries[::-1]) == rule[::-1]
    assert colors.load(CPU)(images / 255, []) == []


def test_bad_clip_weights_are_refused(colors, tiny_state, damaged, check_refusal):
    path = damaged("open_clip_model.safetensors", tiny_state)
    check_refusal(
        replace(colors, clip=partial(colors.clip, model=str(path))), "open_clip_model.safetensors"
    )


def test_colours_that_are_not_finite_stop_the_run(colors, tiny_state, tmp_path, pictures):
    broken = dict(tiny_state) | {"visual.proj": tiny_state["visual.proj"] * torch.nan}
    save_file(broken, tmp_path / "open_clip_model.safetensors")
    tell = replace(colors, clip=partial(colors.clip, model=str(tmp_path))).load(CPU)
    with pytest.raises(ConfigError, match="dtype=float32 is too narrow for this CLIP"):
        tell(pictures(40, 60, 1) / 255, [(0, things(1, (40, 60))[0])])


def test_the_choice_has_the_benchmarks_numbers(choice):
    reward = choice("reward", "geneval_coco")
    assert (reward.counting, reward.detector.threshold, reward.detector.most) == (0.9, 0.3, 16)
    assert (reward.detector.side, reward.measure, reward.name) == (800, "graded", "geneval")
    assert reward.colors.clip.keywords["architecture"] == "ViT-L-14-quickgelu"
    assert COLOR_CLASSES == (
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "black",
        "white",
    )


def test_prompts_of_unknown_kinds_and_colours_are_not_accepted(choice):
    reward = choice("reward", "geneval_coco")
    lines = (Path(assets.__file__).parent / "prompts/geneval_sample.jsonl").read_text().splitlines()
    assert all(reward.accepts(parse_geneval(line)) for line in lines)

    def accepts(*include, exclude=()):
        return reward.accepts(Prompt(text="", include=include, exclude=exclude))

    assert accepts(Clause(name="tv remote", color="pink"), exclude=(Clause(name="computer mouse"),))
    assert not accepts(Clause(name="remote"))
    assert not accepts(Clause(name="dog"), Clause(name="unicorn"))
    assert not accepts(Clause(name="dog", color="cyan"))
    assert not accepts(Clause(name="dog"), exclude=(Clause(name="unicorn"),))


def test_pictures_are_scored_from_end_to_end(choice, detector, colors, pictures):
    """A prompt made of the detections is met; one with another colour is not."""
    images = pictures(64, 64, 2) / 255
    reward = replace(choice("reward", "geneval_coco"), detector=detector, colors=colors)
    name = detector.load(CPU)(images)[0][0].name
    seen = colors.load(CPU)(
        images, [(0, thing) for thing in detector.load(CPU)(images)[0] if thing.name == name]
    )
    clauses = tuple(Clause(name=name, color=color, count=seen.count(color)) for color in set(seen))
    other = next(color for color in COLOR_CLASSES if color not in seen)
    prompts = [
        Prompt(text="", include=clauses),
        Prompt(text="", include=(Clause(name=name, color=other),)),
    ]
    scores = reward.load(CPU)(images[[0, 0]], prompts)
    assert scores.total[0] == scores.parts["geneval_accuracy"][0] == 1
    assert scores.total[1] < 1
    assert scores.parts["geneval_accuracy"][1] == 0
