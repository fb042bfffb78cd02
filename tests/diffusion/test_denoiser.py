"""The denoiser: its artifact, and DDIM against the published update written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from quest.artifacts import ArtifactError, Manifest, save_tensors
from quest.config.sampling import SamplerSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.samplers import Call
from quest.noise import SampleNoise
from quest.quantization.network import QuantizedNetwork

CPU = torch.device("cpu")


def sample(denoiser: Denoiser, steps: int, eta: float, indices: range = range(3)) -> list[Tensor]:
    sampler = denoiser.sampler(SamplerSettings(steps=steps, eta=eta))
    noise = SampleNoise("evaluation", 0, indices, denoiser.shape)
    with torch.inference_mode():
        return list(sampler.trajectory(denoisers.predictor(denoiser.network), noise, CPU))


@pytest.mark.parametrize(("steps", "timesteps"), [(4, [751, 501, 251, 1]), (20, [951 - 50 * i for i in range(20)])])
def test_timesteps(denoiser: Denoiser, steps: int, timesteps: list[int]) -> None:
    assert denoiser.sampler(SamplerSettings(steps=steps)).timesteps.tolist() == timesteps


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_update(denoiser: Denoiser, eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, in float64."""
    states = sample(denoiser, 4, eta)
    assert len(states) == 5
    noise = SampleNoise("evaluation", 0, range(3), denoiser.shape)
    x = noise.draw()
    assert torch.equal(states[0], x)
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for index, t in enumerate([751, 501, 251, 1]):
        x = states[index].double()
        with torch.no_grad():
            predicted = denoiser.network(states[index], torch.full((3,), t)).sample.double()
        now, then = alphas[t], alphas[t - 250] if t > 250 else torch.tensor(1.0).double()
        sigma = eta * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
        clean = (x - (1 - now).sqrt() * predicted) / now.sqrt()
        expected = then.sqrt() * clean + (1 - then - sigma**2).clamp(min=0).sqrt() * predicted
        if eta:
            expected = expected + sigma * noise.draw()
        torch.testing.assert_close(states[index + 1].double(), expected, atol=1e-4, rtol=1e-4)


def test_eta_0_is_deterministic_and_eta_1_has_its_own_noise_for_each_sample(denoiser: Denoiser) -> None:
    assert torch.equal(sample(denoiser, 4, 0.0)[-1], sample(denoiser, 4, 0.0)[-1])
    stochastic = sample(denoiser, 4, 1.0)[-1]
    assert not torch.allclose(stochastic, sample(denoiser, 4, 0.0)[-1], atol=1e-2)
    for indices in (range(1), range(1, 3)):
        torch.testing.assert_close(
            sample(denoiser, 4, 1.0, indices)[-1], stochastic[list(indices)], atol=1e-4, rtol=1e-4
        )


def test_samplers_do_not_share_state(denoiser: Denoiser) -> None:
    first = denoiser.sampler(SamplerSettings(steps=4))
    expected = sample(denoiser, 4, 0.0)[-1]
    denoiser.sampler(SamplerSettings(steps=10))
    noise = SampleNoise("evaluation", 0, range(3), denoiser.shape)
    with torch.inference_mode():
        *_, last = first.trajectory(denoisers.predictor(denoiser.network), noise, CPU)
    assert torch.equal(last, expected)


def test_predictor_tells_a_quantized_network_its_step(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    network = make_quantized()
    predict = denoisers.predictor(network)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        found = predict(x, Call(3, 1))
        assert network.step.index == 1
        network.set_step(3)
        assert torch.equal(found, network(x, torch.tensor([1, 1])).sample)
        network.set_step(0)
        assert not torch.equal(found, network(x, torch.tensor([1, 1])).sample)


def test_save_and_load(make_unet: Callable[..., UNet2DModel], tmp_path: Path) -> None:
    network = make_unet()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    path = tmp_path / "model.safetensors"
    manifest = Manifest(kind="model", seeds={"pretrain": 1}, notes={"loss": 0.5})
    manifest = denoisers.save(path, Denoiser(network, scheduler), manifest, torch.float16)
    assert manifest.notes["loss"] == 0.5
    assert manifest.seeds == {"pretrain": 1}
    loaded = denoisers.load(path)
    assert loaded.sha256 == manifest.sha256
    assert loaded.shape == (1, 8, 8)
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    for name, tensor in network.state_dict().items():
        found = loaded.network.get_parameter(name)
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.half().float())
    assert loaded.scheduler.config["beta_schedule"] == "scaled_linear"
    assert torch.equal(loaded.scheduler.alphas_cumprod, scheduler.alphas_cumprod)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        denoisers.load(tmp_path / "none.safetensors")


def test_corrupt_file(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = bytearray(model_file.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="corrupt"):
        denoisers.load(path)
    path.write_bytes(model_file.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="corrupt"):
        denoisers.load(path)


def test_artifact_of_another_kind(calibration_file: Path) -> None:
    with pytest.raises(ArtifactError, match="kind 'calibration' where 'model' is expected"):
        denoisers.load(calibration_file)


def test_unknown_architecture_and_weights_that_do_not_fit(
    make_unet: Callable[..., UNet2DModel], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {}, Manifest(kind="model", notes={"architecture": "Transformer", "config": {}, "heads": {}}))
    with pytest.raises(ArtifactError, match="architecture 'Transformer'; known are UNet2DModel"):
        denoisers.load(path)
    state = make_unet().state_dict()
    state.pop("conv_in.weight")
    config = {key: value for key, value in make_unet().config.items() if not key.startswith("_")}
    notes = {"architecture": "UNet2DModel", "config": config, "scheduler": {}, "heads": {}}
    state = {f"network.{name}": tensor for name, tensor in state.items()}
    save_tensors(path, state, Manifest(kind="model", notes=notes))
    with pytest.raises(ArtifactError, match=r"(?s)weights do not fit their own architecture.*conv_in\.weight"):
        denoisers.load(path)
