"""One seed a sample."""

from __future__ import annotations

import torch

from quest.noise import SampleNoise, _sample_seed


def test_a_sample_is_the_same_whatever_the_batch() -> None:
    together = SampleNoise("evaluation", 3, range(10), (2, 4, 4))
    first, second = together.draw(), together.draw()
    assert first.shape == (10, 2, 4, 4)
    assert first.dtype == torch.float32
    for indices in ([7], [9, 0, 7], range(5, 10)):
        part = SampleNoise("evaluation", 3, indices, (2, 4, 4))
        assert torch.equal(part.draw(), first[list(indices)])
        assert torch.equal(part.draw(), second[list(indices)])


def test_samples_steps_purposes_and_seeds_are_independent() -> None:
    noise = SampleNoise("evaluation", 0, range(50), (100,))
    rows = [*noise.draw(), *noise.draw()]
    for purpose, seed in (("calibration", 0), ("evaluation", 1)):
        rows += list(SampleNoise(purpose, seed, range(50), (100,)).draw())
    correlation = torch.corrcoef(torch.stack(rows)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.5


def test_noise_is_standard_normal() -> None:
    noise = SampleNoise("evaluation", 0, range(200), (500,)).draw()
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02
    assert abs((noise.abs() < 1).float().mean().item() - 0.6827) < 0.01


def test_noise_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    SampleNoise("evaluation", 0, range(3), (4,)).draw()
    assert torch.equal(torch.rand(3), expected)


def test_no_two_samples_of_a_large_run_share_their_noise() -> None:
    """torch's CPU generator uses 32 bits of a seed, where hashes would meet by chance."""
    seeds = {_sample_seed("evaluation", 0, index) for index in range(200_000)}
    assert len(seeds) == 200_000
    assert max(seeds) < 2**32
