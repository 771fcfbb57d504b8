"""Prompts are encoded alone and, with a cache, once; whatever happens to the files."""

import pytest
import torch
from torch import nn

from grpo_guard.pipeline.encoding import cached, fingerprint, joined, singly
from grpo_guard.types import Condition, ConfigError

CPU = torch.device("cpu")
NO_POOL = torch.zeros(1, 0)


class Encoder:
    """Encodes a text to its length, scaled by a weight; remembers what it was asked."""

    def __init__(self, weight=1.0):
        self.asked, self.net = [], nn.Linear(3, 2)
        nn.init.constant_(self.net.weight, weight)

    def __call__(self, texts):
        self.asked.append(tuple(texts))
        size = torch.tensor([[float(len(text))] for text in texts]) * self.net.weight[0, 0].item()
        return Condition(tokens=size[:, None], pooled=size)

    def cached(self, folder, salt="16 tokens"):
        return cached(self, {"text_encoder": self.net}, salt, folder, CPU)


def test_each_text_is_encoded_alone_and_once():
    encoder = Encoder()
    found = singly(encoder)(["bb", "a", "bb"])
    assert encoder.asked == [("bb",), ("a",)]
    assert found.pooled.flatten().tolist() == [2, 1, 2]
    assert found.tokens.shape == (3, 1, 1)


def test_a_cache_survives_the_process(tmp_path):
    first, again = Encoder(), Encoder()
    again.net.load_state_dict(first.net.state_dict())
    wanted = first.cached(tmp_path)(["bb", "a", "bb"])
    assert first.asked == [("bb",), ("a",)]
    found = again.cached(tmp_path)(["a", "ccc", "bb"])
    assert again.asked == [("ccc",)]
    assert found.pooled.flatten().tolist() == [1, 3, 2]
    assert torch.equal(found.tokens[2], wanted.tokens[0])


@pytest.mark.parametrize(("weight", "salt"), [(2.0, "16 tokens"), (1.0, "77 tokens")])
def test_other_encoders_and_lengths_share_nothing(weight, salt, tmp_path):
    Encoder().cached(tmp_path)(["a"])
    other = Encoder(weight)
    assert other.cached(tmp_path, salt)(["a"]).pooled.item() == weight
    assert other.asked == [("a",)]


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(f.read_bytes()[:40]), lambda f: f.write_bytes(b"")]
)
def test_a_torn_file_is_made_again(damage, tmp_path):
    encoder = Encoder()
    encode = encoder.cached(tmp_path)
    encode(["a"])
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert encode(["a"]).pooled.item() == 1
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"prompt_cache=.*file/cache cannot be written .*choose another"
    ):
        Encoder().cached(tmp_path / "file" / "cache")(["a"])


def test_a_fingerprint_sees_every_weight():
    nets = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)}
    before = fingerprint(nets, "")
    assert fingerprint(nets, "") == before
    with torch.no_grad():
        nets["b"].bias[1] += 1e-3
    assert fingerprint(nets, "") != before
    assert fingerprint(nets, "x") != fingerprint(nets, "")


class Ragged(Encoder):
    """Encodes a text to a token per letter."""

    def __call__(self, texts):
        (text,) = texts
        self.asked.append((text,))
        return Condition(
            tokens=torch.tensor([float(ord(letter)) for letter in text])[None, :, None],
            pooled=NO_POOL,
        )


def test_prompts_of_different_lengths_are_filled_up_and_masked(tmp_path):
    for encode in (singly(Ragged()), Ragged().cached(tmp_path), Ragged().cached(tmp_path)):
        found = encode(["abc", "d", "abc"])
        assert found.tokens[..., 0].tolist() == [[97, 98, 99], [100, 0, 0], [97, 98, 99]]
        assert found.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
        assert found[torch.tensor([1, 1])].mask.tolist() == [[True, False, False]] * 2
        assert encode(["abc", "abc"]).mask is None


def test_what_is_filled_up_can_be_joined_again():
    encode = singly(Ragged())
    whole = encode(["abc", "d", "ef", "g"])
    for parts in ((["abc", "d"], ["ef", "g"]), (["abc"], ["d", "ef", "g"])):
        found = joined([encode(part) for part in parts])
        assert torch.equal(found.tokens, whole.tokens)
        assert torch.equal(found.mask, whole.mask)


def test_an_encoding_in_company_is_kept_with_its_mask(tmp_path):
    kept = Condition(tokens=torch.ones(1, 2, 1), pooled=NO_POOL, mask=torch.tensor([[True, False]]))
    encode = cached(lambda _: kept, {}, "", tmp_path, CPU)
    for _ in range(2):
        assert encode(["a"]).mask.tolist() == [[True, False]]
