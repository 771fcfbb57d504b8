"""Noise depends on its address and nothing else."""

import pytest
import torch

from grpo_guard import rng

ADDRESSES = [
    (0, iteration, sample, step)
    for iteration in (0, 1)
    for sample in (0, 1, 7)
    for step in (rng.START, 0, 1)
]


def noise(addresses, shape=(3, 4, 4)):
    return rng.normal(shape, addresses, "cpu")


def test_keys_are_pinned():
    """All random numbers of a run follow from keys: other keys would change every published run."""
    assert rng.key(0) == 7210762507766007076
    assert rng.key(0, 1, 2, -1) == 6827011968909108860
    assert rng.key("plan", 3) == 4527954349489192617


def test_keys_of_different_addresses_differ():
    pairs = [(a, b) for a in range(40) for b in range(40)]
    lookalikes = [("1", 1), (1, "1"), (1,), (1, 1, 1), (11,), (-1, 1)]
    addresses = pairs + lookalikes
    assert len({rng.key(*address) for address in addresses}) == len(addresses)
    assert all(0 <= rng.key(*address) < 2**63 for address in addresses)


def test_noise_is_one_row_per_address():
    everything = noise(ADDRESSES)
    assert everything.shape == (len(ADDRESSES), 3, 4, 4)
    assert everything.dtype == torch.float32
    assert len({tuple(row.flatten().tolist()) for row in everything}) == len(ADDRESSES)


def test_batches_and_order_do_not_matter():
    everything = noise(ADDRESSES)
    assert torch.equal(torch.cat([noise(ADDRESSES[:5]), noise(ADDRESSES[5:])]), everything)
    assert torch.equal(noise(ADDRESSES[::-1]).flip(0), everything)
    assert torch.equal(torch.cat([noise([a]) for a in ADDRESSES]), everything)


def test_the_global_stream_is_neither_read_nor_moved():
    torch.manual_seed(0)
    first = noise(ADDRESSES)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(noise(ADDRESSES), first)


def test_noise_is_standard_normal_and_independent():
    x = noise([(5, 0, sample, 0) for sample in range(400)], (500,)).double()
    count = x.numel()
    # Bounds are 4 standard errors of each moment.
    assert x.mean().abs() < 4 / count**0.5
    assert (x.square().mean() - 1).abs() < 4 * (2 / count) ** 0.5
    assert (x.pow(4).mean() - 3).abs() < 4 * (96 / count) ** 0.5
    assert (x[1:] * x[:-1]).mean().abs() < 4 / count**0.5


@pytest.mark.parametrize("count", [1, 2, 33])
def test_permutations(count):
    assert sorted(rng.permutation(count, 1, "a")) == list(range(count))
    assert rng.permutation(count, 1, "a") == rng.permutation(count, 1, "a")


def test_permutations_differ_by_address():
    assert len({tuple(rng.permutation(20, seed, "epoch")) for seed in range(50)}) == 50
    places = torch.tensor([rng.permutation(4, seed).index(0) for seed in range(2000)]).bincount()
    # Each place is taken 500 times on average; 4 standard deviations of a binomial.
    assert (places - 500).abs().max() < 4 * (2000 * 0.25 * 0.75) ** 0.5


def test_each_generator_starts_at_the_beginning_of_its_stream():
    used = rng.generator(1, 2)
    first = torch.rand(5, generator=used)
    assert torch.equal(torch.rand(5, generator=rng.generator(1, 2)), first)
    assert not torch.equal(torch.rand(5, generator=used), first)


def test_the_initial_noise_has_an_address_of_its_own():
    assert rng.START == -1
