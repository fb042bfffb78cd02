"""Tokens: exactly k are overwritten, the right ones, and none changes nothing."""

from __future__ import annotations

import pytest
import torch

from quest.diffusion import sampling
from quest.studies import tokens
from quest.studies.subject import Subject
from quest.studies.tokens import CHOICES, COUNTS, FILLINGS, Choice, Corruption, Filling


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(2, 9, 5), (2, 5, 3, 3)])
@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_as_many_tokens_change_as_are_asked_for(filling: Filling, choice: Choice, shape: tuple[int, ...], count: int):
    torch.manual_seed(1)
    x = torch.randn(shape)
    found = Corruption(count, choice, filling).overwrite(x)
    changed = (found != x).any(2) if len(shape) == 3 else (found != x).any(1).flatten(1)
    assert changed.sum(1).tolist() == [count, count]


def test_the_largest_tokens_are_those_with_the_largest_value():
    x = torch.ones(1, 6, 4)
    x[0, 2, 3], x[0, 4, 0] = -9, 5
    assert Corruption(1, "largest", "zeros").overwrite(x)[0, :, 1].tolist() == [1, 1, 0, 1, 1, 1]
    assert Corruption(3, "largest", "zeros").overwrite(x)[0, [2, 4]].eq(0).all()


def test_noise_has_the_mean_and_deviation_of_the_sample():
    torch.manual_seed(1)
    x = 5 + 2 * torch.randn(1, 64, 500)
    found = Corruption(64, "random", "noise").overwrite(x)
    assert found.mean().item() == pytest.approx(5, abs=0.05)
    assert found.std().item() == pytest.approx(2, abs=0.05)


def test_overwriting_no_token_changes_no_sample(subject: Subject):
    network, images = subject.model.network, range(4)
    intact = sampling.draw(subject.model, network, subject.settings, 0, images, subject.device)
    for block in tokens.blocks(network, subject.model.example()).values():
        with tokens.corrupting(block, Corruption(0, "largest", "noise")):
            assert torch.equal(
                sampling.draw(subject.model, network, subject.settings, 0, images, subject.device), intact
            )


def test_every_block_is_swept_and_nothing_stays_corrupted(subject: Subject):
    names = list(tokens.blocks(subject.model.network, subject.model.example()))
    assert [name.split("_")[0] for name in names] == ["down", "mid", "up", "up"]
    rows = tokens.measure(subject)
    assert len(rows) == len(names) * len(CHOICES) * len(FILLINGS) * len(COUNTS)
    assert list(dict.fromkeys(row["block"] for row in rows)) == names
    assert {row["block_tokens"] for row in rows} == {16}  # 4×4
    assert all(row["mse"] > 0 for row in rows)
    assert [len(axes.containers) for axes in tokens.chart("tiny", rows).axes] == [4, 4]
    assert not any(module._forward_hooks for module in subject.model.network.modules())


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match="Linear has no attention block"):
        tokens.blocks(torch.nn.Linear(1, 1), ())
