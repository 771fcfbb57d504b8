"""Each prompt is encoded by itself and, with a cache, only once, even if files are damaged."""

import functools
import os
import re

import pytest
import torch
from torch import nn

from grpo_guard.messages import warn_once
from grpo_guard.pipeline import encoding
from grpo_guard.pipeline.encoding import (
    cache_on_disk,
    encode_each_once,
    fingerprint,
    join_conditions,
)
from grpo_guard.types import Condition

CPU = torch.device("cpu")
NO_POOL = torch.zeros(1, 0)


class Encoder:
    """Encodes a text to its length times a weight, and records its calls."""

    def __init__(self, weight=1.0):
        self.calls = []
        self.net = nn.Linear(3, 2)
        nn.init.constant_(self.net.weight, weight)

    def __call__(self, texts):
        self.calls.append(tuple(texts))
        size = torch.tensor([[float(len(text))] for text in texts]) * self.net.weight[0, 0].item()
        return Condition(tokens=size[:, None], pooled=size)

    def cached(self, folder, salt="16 tokens"):
        encode_by = cache_on_disk({"text_encoder": self.net}, salt, folder, CPU)
        return functools.partial(encode_by, self)


def test_each_text_is_encoded_alone_and_once():
    encoder = Encoder()
    encoded = encode_each_once(encoder, ["bb", "a", "bb"])
    assert encoder.calls == [("bb",), ("a",)]
    assert encoded.pooled.flatten().tolist() == [2, 1, 2]
    assert encoded.tokens.shape == (3, 1, 1)


def test_another_process_reads_the_cache(tmp_path):
    first, again = Encoder(), Encoder()
    again.net.load_state_dict(first.net.state_dict())
    wanted = first.cached(tmp_path)(["bb", "a", "bb"])
    assert first.calls == [("bb",), ("a",)]
    encoded = again.cached(tmp_path)(["a", "ccc", "bb"])
    assert again.calls == [("ccc",)]
    assert encoded.pooled.flatten().tolist() == [1, 3, 2]
    assert torch.equal(encoded.tokens[2], wanted.tokens[0])


@pytest.mark.parametrize(("weight", "salt"), [(2.0, "16 tokens"), (1.0, "77 tokens")])
def test_other_encoders_and_lengths_use_other_files(weight, salt, tmp_path):
    Encoder().cached(tmp_path)(["a"])
    other = Encoder(weight)
    assert other.cached(tmp_path, salt)(["a"]).pooled.item() == weight
    assert other.calls == [("a",)]


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(f.read_bytes()[:40]), lambda f: f.write_bytes(b"")]
)
def test_a_damaged_file_is_written_again(damage, tmp_path):
    encoder = Encoder()
    encode = encoder.cached(tmp_path)
    encode(["a"])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert encode(["a"]).pooled.item() == 1
    assert file.read_bytes() == whole


def test_a_file_that_cannot_be_read_is_not_used(tmp_path, monkeypatch):
    """Another user's file, for example, in a folder that several share."""
    Encoder().cached(tmp_path)(["a"])

    def deny(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(encoding, "load_file", deny)
    again = Encoder()
    assert again.cached(tmp_path)(["a"]).pooled.tolist() == [[1]]
    assert again.calls == [("a",)]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    encoder = Encoder()
    warn_once.cache_clear()
    for _ in range(2):
        encoded = encoder.cached(tmp_path / "file" / "cache")(["bb", "a"])
        assert encoded.pooled.flatten().tolist() == [2, 1]
    assert encoder.calls == [("bb",), ("a",)] * 2
    (record,) = caplog.records
    assert re.match(r"backbone.prompt_cache=.*file/cache cannot be written", record.getMessage())


def test_machines_with_equal_process_numbers_share_a_folder(tmp_path, monkeypatch):
    """Two processes write the same prompt, the second one before the first has finished."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    first, second = Encoder(), Encoder()
    replace = os.replace

    def interrupt(source, target):
        monkeypatch.setattr(os, "replace", replace)
        second.cached(tmp_path)(["a"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    warn_once.cache_clear()
    second.net.load_state_dict(first.net.state_dict())
    assert first.cached(tmp_path)(["a"]).pooled.item() == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_a_fingerprint_sees_every_weight():
    nets = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)}
    before = fingerprint(nets, "")
    assert fingerprint(nets, "") == before
    with torch.no_grad():
        nets["b"].bias[1] += 1e-3
    assert fingerprint(nets, "") != before
    assert fingerprint(nets, "x") != fingerprint(nets, "")


class Ragged(Encoder):
    """Encodes each letter of a text to a token."""

    def __call__(self, texts):
        (text,) = texts
        self.calls.append((text,))
        return Condition(
            tokens=torch.tensor([float(ord(letter)) for letter in text])[None, :, None],
            pooled=NO_POOL,
        )


def test_prompts_of_different_lengths_are_padded_and_masked(tmp_path):
    for encode in (
        functools.partial(encode_each_once, Ragged()),
        Ragged().cached(tmp_path),
        Ragged().cached(tmp_path),
    ):
        encoded = encode(["abc", "d", "abc"])
        assert encoded.tokens[..., 0].tolist() == [[97, 98, 99], [100, 0, 0], [97, 98, 99]]
        assert encoded.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
        assert encoded[torch.tensor([1, 1])].mask.tolist() == [[True, False, False]] * 2
        assert encode(["abc", "abc"]).mask is None


def test_padded_conditions_can_be_joined():
    encode = functools.partial(encode_each_once, Ragged())
    whole = encode(["abc", "d", "ef", "g"])
    for parts in ((["abc", "d"], ["ef", "g"]), (["abc"], ["d", "ef", "g"])):
        joined = join_conditions([encode(part) for part in parts])
        assert torch.equal(joined.tokens, whole.tokens)
        assert torch.equal(joined.mask, whole.mask)


def test_the_mask_is_kept_on_disk(tmp_path):
    kept = Condition(tokens=torch.ones(1, 2, 1), pooled=NO_POOL, mask=torch.tensor([[True, False]]))
    encode_by = cache_on_disk({}, "", tmp_path, CPU)
    for _ in range(2):
        assert encode_by(lambda _: kept, ["a"]).mask.tolist() == [[True, False]]
