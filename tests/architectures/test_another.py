"""A transformer that the library has never seen: all that it has to be told stands in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from quest import architectures, artifacts, methods
from quest.architectures import Architecture, Inputs, Places, register
from quest.artifacts import Manifest
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import checkpoints, start
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import denoiser as denoisers
from quest.diffusion import sampling
from quest.diffusion.denoiser import Denoiser
from quest.learning import calibration as calibrations
from quest.learning import reconstruction
from quest.quantization.account import account
from quest.quantization.attention import QuantizedAttention
from quest.quantization.layers import Switches
from quest.quantization.network import QuantizedNetwork
from quest.quantization.roles import Role
from quest.studies import tokens

CPU = torch.device("cpu")
WIDTH, PATCH = 8, 2


class Mixing(nn.Module):
    """One head of attention; ``products`` replaces how it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.products: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.products is not None:
            return self.products(q, k, v, WIDTH**-0.5)
        return torch.softmax(q @ k.transpose(1, 2) * WIDTH**-0.5, -1) @ v


class Layer(nn.Module):
    """Attention and a feed-forward layer, both shifted by the timestep (as in DiT, Peebles and Xie 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(WIDTH, WIDTH)
        self.mixing = Mixing()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = x + self.mixing(x + self.shift(time).unsqueeze(1))
        return x + self.down(torch.relu(self.up(x)))


class ToyTransformer(ModelMixin, ConfigMixin):
    """Called as network(timesteps, image), unlike a U-Net, and returns the prediction itself."""

    @register_to_config
    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.time = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.pixels = nn.Linear(WIDTH, PATCH**2)

    def forward(self, timesteps: Tensor, image: Tensor) -> Tensor:
        x = self.patches(image)
        grid = x.shape[2:]
        x, time = x.flatten(2).transpose(1, 2), self.time(timesteps.to(x).unsqueeze(1) / 1000)
        for layer in self.layers:
            x = layer(x, time)
        x = self.pixels(x).transpose(1, 2).unflatten(2, grid)
        return nn.functional.pixel_shuffle(x, PATCH)


ENDS = {
    "patches": Role.FIRST,
    "time.0": Role.TIME_MLP,
    "time.2": Role.TIME_MLP,
    "shift": Role.TIME_PROJECTION,
    "query": Role.ATTENTION_Q,
    "key": Role.ATTENTION_K,
    "value": Role.ATTENTION_V,
    "up": Role.FEED_FORWARD,
    "down": Role.FEED_FORWARD,
    "pixels": Role.LAST,
}


class Toy(Architecture):
    networks = (ToyTransformer,)
    blocks = (Layer,)
    token_blocks = (Layer,)

    @property
    def conditional(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.network.config.size, self.network.config.size

    def own_roles(self) -> dict[str, Role]:
        names = [name for name, _ in self.network.named_modules()]
        return {name: role for name in names for end, role in ENDS.items() if f".{name}".endswith(f".{end}")}

    def attentions(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.network.named_modules() if isinstance(module, Mixing)}

    def quantize_products(self, name: str, switches: Switches) -> QuantizedAttention:
        products = QuantizedAttention(switches)
        self.network.get_submodule(name).products = products
        return products

    def places(self) -> Places:
        return Places(("time.0", "time.2"), "layers.0.mixing.query")

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        return inputs.timesteps, inputs.x

    def prediction(self, output: Any) -> Tensor:
        return output


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """For these tests alone: what others say is known would have it too."""
    register(Toy)
    yield
    del architectures._REGISTERED[ToyTransformer.__name__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, settings: DatasetSettings) -> Path:
    """A model artifact of the transformer and calibration data of it."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    denoisers.save(folder / "model", Denoiser(ToyTransformer().eval(), scheduler), Manifest(kind="model"))
    denoiser = denoisers.load(folder / "model")
    data = calibrations.record(denoiser, settings, 0, CPU)
    manifest = Manifest(
        kind="calibration",
        settings=calibrations.depends_on(settings),
        inputs={"model": denoiser.sha256},
        notes={"steps": data.steps},
    )
    artifacts.save_tensors(folder / "calibration", data.export(), manifest)
    return folder


def quantized(folder: Path, settings: DatasetSettings, bits: Bits, method: str = "nearest") -> QuantizedNetwork:
    denoiser = denoisers.load(folder / "model")
    own = start.recipe_of(settings, denoiser, method, bits)
    return QuantizedNetwork(denoiser.network, own, denoiser.example())


def test_a_saved_network_is_built_again(folder: Path) -> None:
    denoiser = denoisers.load(folder / "model")
    assert isinstance(denoiser.network, ToyTransformer)
    assert denoiser.shape == (1, 8, 8)
    timesteps, image = denoiser.example()
    assert timesteps.shape == (1,)
    assert image.shape == (1, 1, 8, 8)


def test_every_layer_and_product_is_quantized(folder: Path, settings: DatasetSettings) -> None:
    network = quantized(folder, settings, Bits(4, 8))
    roles = {name: layer.role for name, layer in network.layers().items()}
    assert roles == network.architecture.own_roles()
    assert len(roles) == 4 + 2 * 6
    operands = {name for name in network.sites() if ".products." in name}
    assert operands == {
        f"layers.{i}.mixing.products.{operand}" for i in range(2) for operand in ("q", "k", "v", "probabilities")
    }
    found = network.account()
    edges = 16 * PATCH**2 * WIDTH + 16 * WIDTH * PATCH**2  # of 8 bits by the common policy
    layers = WIDTH + WIDTH**2 + 2 * (WIDTH**2 + 16 * 7 * WIDTH**2)
    products = 2 * 2 * 16 * 16 * WIDTH
    full = account(denoisers.load(folder / "model").network, network.example)
    assert full["gbops"] == pytest.approx((edges + layers + products) * 32 * 32 / 1e9)
    assert found["gbops"] == pytest.approx((layers * 4 * 8 + (edges + products) * 8 * 8) / 1e9)
    assert (found["layers"], found["full_precision_layers"]) == (16, 0)


def test_off_it_is_the_network_that_it_was(folder: Path, settings: DatasetSettings) -> None:
    original, network = denoisers.load(folder / "model").network, quantized(folder, settings, Bits(4, 4))
    told = Inputs(torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 400, 999]))
    with torch.no_grad(), network.quantizing(weights=False, activations=False):
        torch.testing.assert_close(architectures.predict(network, told), architectures.predict(original, told))


def test_units_are_its_blocks_in_the_order_of_a_call(folder: Path, settings: DatasetSettings) -> None:
    units = reconstruction.units(quantized(folder, settings, Bits(4, 8)))
    assert [unit.name for unit in units] == ["patches", "time.0", "time.2", "layers.0", "layers.1", "pixels"]
    assert [len(unit.layers) for unit in units] == [1, 1, 1, 6, 6, 1]
    with pytest.raises(ValueError, match="ToyTransformer has no layers that depend on the timestep alone"):
        reconstruction.units(quantized(folder, settings, Bits(4, 8)), "temporal")


def test_policies_of_papers_find_their_places(folder: Path, make_settings: Callable[..., DatasetSettings]) -> None:
    settings = make_settings(methods={"tfmq_dm": {"policy": "paper"}, "ptqd": {"policy": "paper"}})
    tfmq = quantized(folder, settings, Bits(4, 4), "tfmq-dm")
    assert set(tfmq.layers()) == set(quantized(folder, settings, Bits(4, 4)).layers()) - {"patches", "time.0", "pixels"}
    for name in ("time.2", "layers.0.mixing.query"):
        assert isinstance(tfmq.layers()[name].input_quantizer, nn.Identity)
    (quantizer, _weight), *_ = quantized(folder, settings, Bits(4, 4), "ptqd").layers()["time.0"].weight_parts()
    assert quantizer.grid.bits == 8


@pytest.mark.parametrize("method", ["quest", "efficientdm", "ptqd"])
def test_from_calibration_to_images(folder: Path, settings: DatasetSettings, tmp_path: Path, method: str) -> None:
    """Reconstructed, trained by a method, stored, read again, sampled from."""
    denoiser = denoisers.load(folder / "model")
    data = calibrations.load(folder / "calibration", denoiser, settings)
    network = quantized(folder, settings, Bits(4, 8), method)
    rounding = methods.starts_from(method, settings.method(method))
    if rounding is not None:
        progress = reconstruction.Progress(tmp_path / "progress", {})
        losses = reconstruction.reconstruct(network, data, settings.reconstruction, 0, progress, rounding.grouping)
        assert list(losses) == [unit.name for unit in reconstruction.units(network)]
    outcome = methods.get(method).quantize(network, data, settings.method(method), 0)
    made = Checkpoint(
        network,
        method,
        settings.sampler,
        correction=outcome.correction,
        inputs={"model": denoiser.sha256},
        notes=outcome.notes,
    )
    checkpoints.save(tmp_path / "checkpoint", made)
    loaded = checkpoints.load(tmp_path / "checkpoint", denoisers.load(folder / "model"))
    with torch.no_grad():
        images = [
            sampling.draw(denoiser, each, settings, 0, range(2), CPU, outcome.correction)
            for each in (network, loaded.network)
        ]
    assert torch.equal(*images)
    assert images[0].shape == (2, 1, 8, 8)


def test_the_study_of_tokens_finds_its_blocks(folder: Path) -> None:
    denoiser = denoisers.load(folder / "model")
    assert list(tokens.blocks(denoiser.network, denoiser.example())) == ["layers.0", "layers.1"]


def test_a_layer_that_it_does_not_explain_is_given_a_role(folder: Path, settings: DatasetSettings) -> None:
    denoiser = denoisers.load(folder / "model")
    denoiser.network.extra = nn.Linear(2, 2)
    recipe = start.recipe(settings, Bits(4, 8))
    message = r"unknown role in ToyTransformer: extra \(Linear\); .* \(quantizer\.roles\), one of time_mlp"
    with pytest.raises(ValueError, match=message):
        QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    given = replace(recipe, quantizer=recipe.quantizer.model_copy(update={"roles": {"extra": "projection"}}))
    with pytest.raises(ValueError, match="never reaches: extra"):
        QuantizedNetwork(denoiser.network, given, denoiser.example())
