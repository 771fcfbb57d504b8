"""OCR by torch, with weights in the published format, and engines that are not available."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import rapidocr
import torch
from omegaconf import OmegaConf
from rapidocr.inference_engine.pytorch.networks.architectures.base_model import BaseModel
from rapidocr.inference_engine.pytorch.networks.main import ModelLoader

from grpo_guard.reward import ocr
from grpo_guard.reward.ocr import OCR
from grpo_guard.schema import ConfigError
from grpo_guard.types import Prompt

CPU = torch.device("cpu")
SETTINGS = {
    "match": "exact",
    "detect": False,
    "side": 96,
    "confidence": 0.0,
    "workers": None,
    "engine": "torch",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths:UserWarning"
)


def make_network(part):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return BaseModel(OmegaConf.load(ModelLoader.DEFAULT_CFG_PATH)[part]).eval()


@pytest.fixture(scope="module")
def letters():
    """Return the characters that the wheel's recognition network knows."""
    file = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"
    return (
        onnxruntime.InferenceSession(str(file))
        .get_modelmeta()
        .custom_metadata_map["character"]
        .splitlines()
    )


@pytest.fixture(scope="module")
def folder(letters, tmp_path_factory):
    """Write the three files, with random weights."""
    path = tmp_path_factory.mktemp("ocr")
    for part in ("PP-OCRv6_det_small", "PP-OCRv6_rec_small"):
        torch.save(make_network(part).state_dict(), path / f"{part}.pth")
    (path / "ppocrv6_dict.txt").write_text("\n".join(letters), encoding="utf-8")
    return path


def read(picture, letters):
    """Return the likeliest letter of each column of an RGB picture, without repeats and blanks."""
    small = (
        cv2.resize(np.ascontiguousarray(picture[..., ::-1]), (48, 48)).astype(np.float32) / 127.5
        - 1
    )
    with torch.no_grad():
        columns = make_network("PP-OCRv6_rec_small")(torch.from_numpy(small).permute(2, 0, 1)[None])
    kept = [k for k, _ in itertools.groupby(columns.argmax(-1)[0].tolist()) if k]
    return "".join([*letters, " "][k - 1] for k in kept).replace(" ", "").lower()


def test_torch_reads_what_its_network_says(folder, letters, pictures):
    images = pictures(64, 64, 6)
    score = OCR(**SETTINGS, model=str(folder)).load(CPU)
    expected = [read(x.permute(1, 2, 0).byte().numpy(), letters) for x in images]
    rewards = score(images / 255, [Prompt(text=f'"{text}"') for text in expected])
    assert [note for (note,) in rewards.notes] == [f'read "{text}"' for text in expected]
    assert any(expected)
    assert rewards.total.tolist() == [float(bool(text)) for text in expected]


def test_torch_looks_for_lines(folder):
    score = OCR(**SETTINGS | {"detect": True}, model=str(folder)).load(CPU)
    assert score(torch.ones(1, 3, 64, 64), [Prompt(text='"stop"')]).total.tolist() == [0]


@pytest.mark.parametrize("file", ["PP-OCRv6_det_small.pth", "PP-OCRv6_rec_small.pth"])
def test_a_file_that_is_missing_or_another_is_named(folder, file, tmp_path):
    for name in ("PP-OCRv6_det_small.pth", "PP-OCRv6_rec_small.pth", "ppocrv6_dict.txt"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / file).unlink()
    with pytest.raises(
        ConfigError, match=rf"^model={tmp_path} cannot be loaded .*{file}.*; put .* into a folder"
    ):
        OCR(**SETTINGS | {"detect": True}, model=str(tmp_path)).load(CPU)
    torch.save({"no": torch.ones(1)}, tmp_path / file)
    with pytest.raises(ConfigError, match=rf"^model={tmp_path} cannot be loaded \(Error"):
        OCR(**SETTINGS | {"detect": True}, model=str(tmp_path)).load(CPU)


def test_onnx_on_a_gpu_does_not_fall_back_to_the_cpu(monkeypatch):
    gpu = OCR(**SETTINGS | {"engine": "onnxruntime_gpu"})
    for device, providers in (
        ("cpu", ["CUDAExecutionProvider"]),
        ("cuda", ["CPUExecutionProvider"]),
    ):
        monkeypatch.setattr(ocr, "get_available_providers", lambda providers=providers: providers)
        with pytest.raises(
            ConfigError, match=r"^engine=onnxruntime_gpu needs a GPU and onnxruntime-gpu"
        ):
            gpu.load(torch.device(device))


def test_onnx_on_a_gpu_is_that_of_the_rank(monkeypatch):
    calls = []
    monkeypatch.setattr(ocr, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ocr, "load_reader", lambda *arguments: calls.append(arguments) or len)
    OCR(**SETTINGS | {"engine": "onnxruntime_gpu"}).load(torch.device("cuda", 3))
    engine = {
        "EngineConfig.onnxruntime.use_cuda": True,
        "EngineConfig.onnxruntime.cuda_ep_cfg.device_id": 3,
    }
    assert calls == [(False, 96, engine)]
    known = OmegaConf.load(Path(rapidocr.__file__).parent / "config.yaml")
    assert all(OmegaConf.select(known, key) is not None for key in engine)


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"workers": 2}, "workers=2 cannot be used with engine=torch"),
        ({"engine": "onnxruntime", "model": "here"}, "model=here is for engine=torch"),
    ],
)
def test_bad_settings_are_refused(change, refused):
    with pytest.raises(ConfigError, match=refused):
        OCR(**SETTINGS | change)
