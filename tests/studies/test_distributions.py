"""Distributions: numbers of known samples, and versions of the weights that are what they are called."""

from __future__ import annotations

import pytest
import torch

from quest.studies import distributions
from quest.studies.distributions import FINETUNED, FULL, RECONSTRUCTED, summary, versions
from quest.studies.subject import Subject, outputs


def test_summary_of_known_samples():
    torch.manual_seed(0)
    normal = summary(2 + 3 * torch.randn(200_000))
    assert normal["mean"] == pytest.approx(2, abs=0.03)
    assert normal["std"] == pytest.approx(3, abs=0.02)
    assert normal["kurtosis"] == pytest.approx(3, abs=0.05)
    assert normal["low_999"] == pytest.approx(2 - 3 * 3.29, abs=0.3)
    assert summary(torch.tensor([-1.0, 1.0]))["kurtosis"] == pytest.approx(1)
    uniform = summary(torch.linspace(0, 1, 20_001))
    assert uniform["kurtosis"] == pytest.approx(1.8, abs=1e-3)
    assert (uniform["min"], uniform["max"]) == (0, 1)
    assert (uniform["low_999"], uniform["high_999"]) == pytest.approx((0.0005, 0.9995), abs=1e-6)
    assert summary(torch.tensor([0.0] * 999 + [10.0]))["kurtosis"] > 900  # one large value among many


def test_rows_of_every_version_step_and_layer(subject: Subject):
    rows = distributions.measure(subject)
    layers = len(subject.quantized(subject.bits, calibrated=False).layers())
    assert len(rows) == 3 * 2 * layers
    assert list(dict.fromkeys(row["weights"] for row in rows)) == [FULL, RECONSTRUCTED, FINETUNED]
    assert all(row["min"] <= row["low_999"] <= row["mean"] <= row["high_999"] <= row["max"] for row in rows)


def test_versions_are_the_model_its_rounding_and_the_checkpoint(subject: Subject):
    states = subject.states()
    original = dict(subject.model.network.named_parameters())
    for version, network in versions(subject):
        found = dict(outputs(network, states, ["conv_in"]))[0]["conv_in"]
        teacher = torch.nn.functional.conv2d(
            states.x[:3], original["conv_in.weight"], original["conv_in.bias"], padding=1
        )
        assert torch.allclose(found, teacher, atol=1e-6) == (version == FULL)
        with torch.no_grad():
            weight = network.layers()["mid_block.attentions.0.to_q"].quantized_weight()
        # 16 levels a channel, also of the finetuned weights: a checkpoint keeps codes.
        assert all(len(row.unique()) <= 16 for row in weight)
