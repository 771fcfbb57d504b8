"""Pictures, small models in the published formats, and ways in which a file can be damaged."""

import json

import open_clip
import pytest
import torch
from PIL import Image

from grpo_guard.schema import ConfigError

TINY = "tiny-clip"


@pytest.fixture(scope="session")
def pictures():
    """Make smooth random 8-bit pictures with colours of every kind."""

    def make(height, width, count):
        small = torch.rand(count, 3, 7, 9, generator=torch.Generator().manual_seed(1))
        large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
        return large.mul(255).round().byte()

    return make


@pytest.fixture(scope="session")
def pil():
    """Convert 8-bit pictures to Pillow's."""
    return lambda images: [Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()) for x in images]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Add a small architecture to open_clip, with ViT-L/14's embedding width and activation."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    path = tmp_path_factory.mktemp("architecture") / f"{TINY}.json"
    path.write_text(
        json.dumps({"embed_dim": 768, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(path)
    return TINY


@pytest.fixture(scope="session")
def tiny_state(tiny):
    torch.manual_seed(2)
    return open_clip.CLIP(**open_clip.get_model_config(tiny)).state_dict()


def drop_last(state):
    return dict(list(state.items())[:-1])


def reshape_last(state):
    name, value = next(reversed(state.items()))
    return {**state, name: torch.zeros(*value.shape, 2)}


DAMAGES = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, _: path.write_bytes(b""),
    "a page instead": lambda path, _: path.write_text("<!DOCTYPE html>\n<html>Not found</html>"),
    "a list instead": lambda path, _: torch.save([1, 2], path),
    "nothing in it": lambda path, _: torch.save({}, path),
    "a weight is missing": lambda path, state: torch.save(drop_last(state), path),
    "a weight has another shape": lambda path, state: torch.save(reshape_last(state), path),
}


@pytest.fixture(params=DAMAGES)
def damaged(request, tmp_path):
    """Make a folder with a damaged file of this name; an intact one would hold the state."""

    def make(file, state):
        torch.save(dict(state), tmp_path / file)
        DAMAGES[request.param](tmp_path / file, state)
        return tmp_path

    return make


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def check_refusal():
    """Check that a reward refuses to load, in one line that holds all the words."""

    def check(reward, *words):
        with pytest.raises(ConfigError) as caught:
            reward.load(torch.device("cpu"))
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)

    return check
