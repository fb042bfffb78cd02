"""Sizes without weights are those of the network that the library quantizes."""

from __future__ import annotations

import pytest
import torch

from quest import architectures
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.values import Bits, ConfigError
from quest.deploy import start
from quest.estimate import networks
from quest.estimate.networks import Model
from quest.learning import reconstruction
from quest.learning.calibration import Samples
from quest.quantization.network import QuantizedNetwork


def test_units_weights_and_caches(settings: DatasetSettings, tiny: Model) -> None:
    found = networks.size(tiny)
    network = QuantizedNetwork(tiny.network, start.recipe(settings, Bits(4, 4)), tuple(tiny.inputs(1, "cpu")[:2]))
    units = reconstruction.units(network)
    assert found.units == len(units)
    assert found.weights == sum(layer.weight.numel() for layer in network.layers().values())
    assert found.shape == (1, 8, 8)
    samples = Samples(torch.randn(3, 1, 8, 8), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    caches = [reconstruction.record(network, unit, samples, 1, weights=False) for unit in units]
    recorder = reconstruction.Recorder(network, units, samples, 1, weights=False)
    assert found.kept_bytes == recorder.bytes_a_sample > 0
    # An argument that all samples share, like a scale of the embedding, is no part of a cache.
    assert found.cache_bytes == pytest.approx(max(cache.device_bytes for cache in caches) / 3, rel=0.01)


@pytest.mark.parametrize(
    ("dataset", "millions", "units"),
    [("cifar10", 35.75, 38), ("lsun-bedrooms", 274.06, 48), ("imagenet", 400.92, 80), ("stable-diffusion", 859.52, 80)],
)
def test_the_papers_networks_need_no_weights(dataset: str, millions: float, units: int) -> None:
    found = networks.size(networks.model(dataset, load_dataset(dataset)))
    assert found.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert found.units == units


def test_an_unknown_model_says_what_to_do(settings: DatasetSettings) -> None:
    own = settings.model_copy(update={"pretrain": None})
    with pytest.raises(ConfigError, match=r"none\.safetensors is not here.*import it first"):
        networks.model("own", own)


def test_a_transformer_is_told_classes(settings: DatasetSettings) -> None:
    """Its table of positions is a buffer, which has no numbers either where the model is built without weights."""
    content = settings.model_dump(mode="json") | {
        "condition": {"classes": 10},
        "pretrain": {"transformer": {"layers": 2, "heads": 2, "head_dim": 8}, "steps": 1},
    }
    model = networks.model("own", DatasetSettings.model_validate(content))
    assert model.context == ()
    assert networks.size(model).units == 2 + 3, "its blocks; patches in, the last norm and patches out"
    ready = networks.materialized(model, torch.device("cpu"))
    told = ready.inputs(3, "cpu")
    assert told.context is not None
    assert (told.context.dtype, told.context.shape) == (torch.long, (3,))
    with torch.no_grad():
        assert architectures.predict(ready.network, told).isfinite().all()
    content["pretrain"]["first_stage"] = "nowhere.safetensors"
    with pytest.raises(ConfigError, match=r"pretrain\.first_stage: nowhere\.safetensors is not here; `dvc pull"):
        networks.model("own", DatasetSettings.model_validate(content))


def test_random_weights_keep_the_size_of_what_passes(settings: DatasetSettings) -> None:
    model = networks.materialized(networks.model("tiny", settings), torch.device("cpu"))
    with torch.no_grad():
        output = model.network(*model.inputs(4, "cpu")[:2]).sample
    assert output.isfinite().all()
    assert 0.01 < output.std() < 100
