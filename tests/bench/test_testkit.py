"""True sizes counted from shapes alone, and the walk through every stage on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quest import architectures
from quest.bench import testkit
from quest.config.dataset import DatasetSettings, load_dataset
from quest.quantization.roles import Role
from quest.sources import compvis
from quest.sources import pipelines as loaders

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"


def unet(name: str) -> Any:
    """A published network on the meta device."""
    if name == "cifar10":
        return testkit.cifar10_unet()
    if name == "stable-diffusion":
        return testkit.stable_diffusion_unet()
    return compvis.build_unet(compvis.read_architecture(ROOT / "config" / "models" / f"{name}.yaml"))


def millions(network: nn.Module, chosen: set[str]) -> float:
    """Weights and biases of the layers whose role is in ``chosen``, in millions."""
    names = [name for name, role in architectures.of(network).roles().items() if role in chosen]
    return sum(p.numel() for name in names for p in network.get_submodule(name).parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("cifar10", 35.75, 113),
        # Query, key and value are one convolution in the released code and three layers here: two more an attention.
        ("lsun-bedrooms", 274.06, 123 + 2 * 16),
        ("lsun-churches", 294.97, 168 + 2 * 21),
        ("imagenet", 400.92, 283),
        ("stable-diffusion", 859.52, 282),
    ],
)
def test_sizes_are_the_published_ones(name: str, parameters: float, layers: int) -> None:
    network = unet(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)
    assert len(architectures.of(network).roles()) == layers


@pytest.mark.parametrize(
    ("name", "tla", "cma"),
    [
        ("lsun-bedrooms", 11.65, 24.27),
        ("lsun-churches", 27.76, 15.62),
        ("imagenet", 9.60, 126.91),
        ("stable-diffusion", 25.82, 148.80),
    ],
)
def test_what_quest_trains_is_what_its_released_code_trains(name: str, tla: float, cma: float) -> None:
    network, layers = unet(name), load_dataset(name, ROOT / "config").methods.quest.cma_layers
    assert millions(network, {Role.TIME_PROJECTION}) == pytest.approx(tla, abs=0.006)
    assert millions(network, set(layers)) == pytest.approx(cma, abs=0.006)


def test_layers_of_cma_on_imagenet() -> None:
    """ff.net.0.proj, ff.net.2, to_q of both attentions, to_k and to_v of self-attention: 6 of 16 blocks."""
    layers = load_dataset("imagenet", ROOT / "config").methods.quest.cma_layers
    names = [name for name, role in architectures.of(unet("imagenet")).roles().items() if role in layers]
    ends = ("ff.net.0.proj", "ff.net.2", "attn1.to_q", "attn2.to_q", "attn1.to_k", "attn1.to_v")
    assert len(names) == 96
    assert all(name.endswith(ends) for name in names)


@pytest.mark.parametrize("name", ["bedrooms_ldm4", "churches_ldm8", "imagenet_ldm4"])
def test_random_checkpoint_has_the_layout_of_a_published_one(name: str, tmp_path: Path) -> None:
    architecture = GOLDEN / f"{name}.json"
    testkit.random_checkpoint("tiny", tmp_path / "model.ckpt", architecture)
    state, real = compvis.read_state(tmp_path / "model.ckpt"), compvis.read_state(GOLDEN / f"{name}.ckpt")
    of_training = {"model_ema.decay", "model_ema.num_updates", "scale_factor"}
    assert set(state) == set(real) - of_training
    assert all(state[key].shape == real[key].shape for key in state)


@pytest.mark.parametrize("name", ["bedrooms_ldm4", "churches_ldm8", "imagenet_ldm4"])
def test_walk(name: str, tmp_path: Path, make_settings: Callable[..., DatasetSettings]) -> None:
    architecture, source = GOLDEN / f"{name}.json", tmp_path / "model.ckpt"
    testkit.random_checkpoint("tiny", source, architecture)
    conditional = {"condition": {"classes": 10}, "sampler": {"guidance_scale": 3.0}} if "imagenet" in name else {}
    settings = make_settings(image_size=64, image_channels=3, architecture=str(architecture), **conditional)
    costs = list(testkit.walk(testkit.small(settings, source, tmp_path / "prompts.txt"), tmp_path, torch.device("cpu")))
    assert [cost.stage for cost in costs] == ["import", "calibrate", "quantize", "finetune", "sample"]
    assert all(cost.seconds > 0 and cost.peak_mib == 0 for cost in costs)
    network: Any = compvis.build_unet(compvis.read_architecture(architecture))
    assert costs[2].notes == {
        "parameters": sum(p.numel() for p in network.parameters()),
        "layers": len(architectures.of(network).roles()),
    }
    assert costs[3].notes["tla"] == pytest.approx(1e6 * millions(network, {Role.TIME_PROJECTION}))
    assert costs[4].notes == {"images": [2, 3, 64, 64]}


def test_random_folder_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        tiny: Any = testkit.UNet2DModel(
            sample_size=8,
            block_out_channels=(32,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
        )
    monkeypatch.setattr(testkit, "cifar10_unet", lambda: tiny)
    testkit.random_checkpoint("cifar10", tmp_path / "folder")
    model = loaders.open_source(tmp_path / "folder")
    assert model.shape == (3, 8, 8)
    with torch.no_grad():
        assert model.network(*model.example()).sample.isfinite().all()


def test_nothing_random_for_a_dataset_without_a_published_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digits: no architecture"):
        testkit.random_checkpoint("digits", tmp_path / "x")
