"""Saved adapters draw the same pictures however they are loaded, and training can begin from them.

The pictures are those of the shipped SD3 with adapters whose alpha is not their rank.
"""

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import SMALL, perturb, sample, save

from grpo_guard.backbone.lora import Lora
from grpo_guard.backbone.sd3 import SD3
from grpo_guard.schema import ConfigError

TEXTS = ["a red circle", "two blue squares"]
LORA = Lora(rank=4, alpha=12, targets=["attn.to_q", "attn.add_q_proj"])
FILE = "pytorch_lora_weights.safetensors"


def load(**changes):
    recipe = SD3(model="sd3_tiny", guidance=1.0, t5_tokens=0, **SMALL)
    return dataclasses.replace(recipe, **changes).load(torch.device("cpu"))


def draw(model):
    return sample(model, TEXTS, 3)


@pytest.fixture(scope="module")
def tuned():
    """A model with adapters that change its pictures."""
    model = load(lora=LORA)
    torch.manual_seed(3)
    perturb(model, size=0.05)
    return model


@pytest.fixture(scope="module")
def checkpoint(tuned, tmp_path_factory):
    """The folder of a checkpoint of that model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save(tuned, folder)
    return folder


def save_with_alpha_in_metadata(model, folder):
    """Save adapters as earlier versions of this package did: B as it is, alpha in the metadata."""
    transformer = model.pipe.transformer
    type(model.pipe).save_lora_weights(
        folder / "lora",
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


def load_folder(model, checkpoint):
    model.pipe.load_lora_weights(checkpoint / "lora")


def load_tensors(model, checkpoint):
    model.pipe.load_lora_weights(load_file(checkpoint / "lora" / FILE))


def load_by_peft(model, checkpoint):
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.rank, target_modules=LORA.targets)
    inject_adapter_in_model(config, model.pipe.transformer)
    layers = load_file(checkpoint / "lora" / FILE)
    named = {name.removeprefix("transformer."): value for name, value in layers.items()}
    set_peft_model_state_dict(model.pipe.transformer, named)


@torch.no_grad()
def add_products(model, checkpoint):
    """Add B A to each weight, as tools do that read nothing but tensors."""
    layers = load_file(checkpoint / "lora" / FILE)
    for name, b in layers.items():
        if ".lora_B." in name:
            path = name.removeprefix("transformer.").partition(".lora_B.")[0]
            a = layers[name.replace(".lora_B.", ".lora_A.")]
            model.pipe.transformer.get_submodule(path).weight.add_(b @ a)


@pytest.mark.parametrize("load_way", [load_folder, load_tensors, load_by_peft, add_products])
def test_saved_adapters_draw_the_same_however_they_are_loaded(load_way, tuned, checkpoint):
    model = load()
    expected = draw(tuned)
    assert (draw(model) - expected).abs().max() > 0.05
    load_way(model, checkpoint)
    assert (draw(model) - expected).abs().max() < 1e-4


def test_metadata_of_saved_adapters_repeat_that_alpha_is_the_rank(checkpoint):
    with safe_open(checkpoint / "lora" / FILE, "pt") as file:
        metadata = file.metadata()["lora_adapter_metadata"].replace(" ", "").replace("\n", "")
    assert '"transformer.lora_alpha":4' in metadata
    assert '"transformer.r":4' in metadata


def test_new_and_old_exports_are_restored(tuned, checkpoint, tmp_path):
    save_with_alpha_in_metadata(tuned, tmp_path)
    for folder in (checkpoint, tmp_path):
        model = load(lora=LORA)
        model.restore(folder)
        assert (draw(model) - draw(tuned)).abs().max() < 1e-5


def test_saving_changes_no_trained_weight(tuned, tmp_path):
    before = {name: p.detach().clone() for name, p in tuned.policy.named_parameters()}
    save(tuned, tmp_path)
    assert all(torch.equal(before[name], p) for name, p in tuned.policy.named_parameters())


@pytest.mark.parametrize("alpha", [12, 4, 7])
def test_training_begins_from_adapters_of_any_alpha(alpha, tuned, checkpoint, tmp_path):
    save_with_alpha_in_metadata(tuned, tmp_path)
    lora = dataclasses.replace(LORA, alpha=alpha)
    places = [checkpoint, checkpoint / "lora", checkpoint / "lora" / FILE, tmp_path]
    for place in places:
        model = load(lora=lora, init=str(place))
        assert (draw(model) - draw(tuned)).abs().max() < 1e-4
    assert all(p.dtype == torch.float32 for p in model.policy.parameters() if p.requires_grad)


def test_alphas_among_the_tensors_count(tuned, tmp_path):
    """Other programs write an alpha beside every layer's A and B, and no metadata."""
    layers = {
        f"transformer.{name}": value.contiguous()
        for name, value in get_peft_model_state_dict(tuned.pipe.transformer).items()
    }
    for name in [name for name in layers if ".lora_B." in name]:
        layers[name.partition(".lora_B.")[0] + ".alpha"] = torch.tensor(float(LORA.alpha))
    save_file(layers, tmp_path / FILE)
    model = load(lora=LORA, init=str(tmp_path))
    assert (draw(model) - draw(tuned)).abs().max() < 1e-4


def test_training_begins_from_a_whole_transformer(tmp_path):
    whole = load()
    perturb(whole)
    save(whole, tmp_path)
    model = load(init=str(tmp_path))
    assert torch.equal(draw(model), draw(whole))
    assert all(p.requires_grad for p in model.policy.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_has_the_weights_that_training_began_from(lora, dtype, tmp_path):
    trained = load(lora=lora)
    perturb(trained)
    save(trained, tmp_path)
    model = load(lora=lora, dtype=dtype, init=str(tmp_path))
    names = {name for name, p in model.policy.named_parameters() if p.requires_grad}
    x, t, condition = torch.randn(2, *model.shape), torch.full((2,), 0.7), model.encode(TEXTS)
    reference = model.reference()
    before = model.policy(x, t, condition).detach()
    assert torch.equal(reference(x, t, condition), before)
    perturb(model)
    assert torch.equal(reference(x, t, condition), before)
    assert torch.equal(model.reference()(x, t, condition), before)
    assert not torch.allclose(model.policy(x, t, condition), before, atol=1e-3)
    assert {name for name, p in model.policy.named_parameters() if p.requires_grad} == names


def test_a_run_that_began_from_adapters_saves_them_with_its_own(tuned, checkpoint, tmp_path):
    model = load(lora=LORA, init=str(checkpoint))
    model.reference()
    perturb(model)
    save(model, tmp_path)
    base = load()
    load_folder(base, tmp_path)
    assert (draw(base) - draw(model)).abs().max() < 1e-4
    assert (draw(base) - draw(tuned)).abs().max() > 1e-2


def broken(folder):
    place = folder / "broken"
    place.mkdir()
    (place / FILE).write_bytes(b"nothing of ours")
    return place


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"lora": dataclasses.replace(LORA, rank=8)}, "backbone.lora.rank=8 makes it"),
        ({"lora": dataclasses.replace(LORA, targets=["attn.to_k"])}, "it holds other adapters"),
        ({"lora": None}, "it has no transformer/"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(changes, line, checkpoint):
    with pytest.raises(ConfigError, match=rf"^backbone\.init=.* \(.*{line}.*\); give") as error:
        load(**changes, init=str(checkpoint))
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/transformer").mkdir(parents=True)
    (tmp_path / "other/transformer/config.json").write_text('{"_class_name": "Other"}')
    cases = [
        (tmp_path / "absent", LORA, "is not here; give"),
        (tmp_path / "empty", LORA, "it has no adapters"),
        (broken(tmp_path), LORA, "does not fit this backbone"),
        (tmp_path / "other", None, "it holds a Other, not a SD3Transformer2DModel"),
    ]
    for place, lora, line in cases:
        with pytest.raises(ConfigError, match=line) as error:
            load(lora=lora, init=str(place))
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def untrained():
    """A model with adapters, into which others are loaded."""
    return load(lora=LORA)


@settings(max_examples=20)
@given(
    length=st.none() | st.integers(0, 2000),
    place=st.integers(0, 4000),
    wrong=st.binary(max_size=4) | st.sampled_from([b"[]", b"null", b"9" * 8]),
)
@example(length=0, place=0, wrong=b"")
@example(length=8, place=0, wrong=b"\xff" * 8)
def test_damaged_adapters_are_loaded_or_refused_in_a_line(
    untrained, checkpoint, tmp_path_factory, length, place, wrong
):
    content = (checkpoint / "lora" / FILE).read_bytes()[:length]
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(content[:place] + wrong + content[place + len(wrong) :])
    line = ""
    try:
        untrained.load_init(file)
    except ConfigError as error:
        line = str(error)
    assert "\n" not in line
