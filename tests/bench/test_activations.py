"""What steps keep at the papers' sizes, from shapes alone, is what the same steps keep with numbers."""

from __future__ import annotations

import pytest
import torch

from quest.bench import activations, networks, training
from quest.config.methods.quest import QuestSettings
from quest.learning import recomputing, turns
from quest.methods import quest
from quest.quantization.network import QuantizedNetwork


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("name", ["bedrooms", "imagenet"])
def test_shapes_tell_what_numbers_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, from_shapes, _) = activations.rows_of(networks.make(name, "meta"), name, [3])
    measured = []
    passes = training._passes

    def spy(name: str, network: QuantizedNetwork, *rest: object) -> object:
        stage = quest.attention_alignment(network, QuestSettings())
        with turns.trained(stage.sites), network.frozen(but=stage.layers), activations._training(stage):
            x = torch.zeros(3, *networks.SHAPE)
            measured.append(recomputing.measure(network, lambda: activations._loss(network, stage, x)))
        return passes(name, network, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_passes", spy)
    training.timed(name, networks.make(name, "cpu"), 1, 4, "cpu")
    assert from_shapes.stage == "cma"
    (with_numbers,) = measured
    # The meta device copies a tensor where a CPU does not.
    assert from_shapes.kept.bytes() == pytest.approx(with_numbers.bytes(), rel=0.02)
    assert from_shapes.kept.least() == pytest.approx(with_numbers.least(), rel=0.02)
    assert with_numbers.least() < with_numbers.peak()


@pytest.mark.usefixtures("tiny_networks")
def test_a_table_of_each_network() -> None:
    first, second = activations.run(["bedrooms", "imagenet"], [1, 4], 0.002).split("\n\n")
    assert first.startswith("bedrooms, GiB, W4A4\nstage")
    lines = [line.split() for line in second.splitlines()[2:]]
    assert [line[:2] for line in lines] == [[stage, batch] for stage in activations.STAGES for batch in ("1", "4")]
