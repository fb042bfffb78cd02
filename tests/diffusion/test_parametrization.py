"""Networks that predict v or the image, or whose schedulers limit it, are sampled as diffusers' DDIM does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor, nn

from quest.config.reading import validate
from quest.config.sampling import SamplerSettings
from quest.diffusion.denoiser import predictor
from quest.diffusion.parametrization import KINDS, Parametrization
from quest.diffusion.samplers import Sampler
from quest.noise import SampleNoise

CPU = torch.device("cpu")
SHAPE = (2, 4, 4)
LATENT: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def ddim(config: dict[str, Any]) -> Any:
    """diffusers' scheduler."""
    return DDIMScheduler(**config)


class Network(nn.Module):
    """Depends on every element and on the timestep; at most ``size``."""

    def __init__(self, size: float = 1.0):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, timestep: Tensor) -> Any:
        told = timestep.view(-1, 1, 1, 1) / 1000
        return type("Output", (), {"sample": self.size * torch.tanh(0.7 * x + told + 0.1 * x.flip(-1))})


class Fixed(SampleNoise):
    """Noise that is given, one tensor a draw."""

    def __init__(self, tensors: list[Tensor]):
        self.tensors = list(tensors)

    def draw(self, device: torch.device | str = "cpu") -> Tensor:
        return self.tensors.pop(0)


def states(config: dict[str, Any], network: nn.Module, noise: list[Tensor], **settings: Any) -> list[Tensor]:
    """Ours on the way from the first of ``noise``."""
    sampler = Sampler(ddim(config), validate(SamplerSettings, settings, "tests"))
    return list(sampler.trajectory(predictor(network), Fixed(noise), CPU))


def compare(config: dict[str, Any], network: nn.Module, eta: float = 0.0, steps: int = 10) -> Tensor:
    """Hold every state on the way against that of diffusers; the last of them."""
    noise = list(torch.randn(steps + 1, 3, *SHAPE, generator=torch.Generator().manual_seed(1)))
    found = states(config, network, noise, steps=steps, eta=eta)
    theirs: Any = ddim(config)
    theirs.set_timesteps(steps)
    x = noise[0]
    for index, t in enumerate(theirs.timesteps.tolist()):
        fresh = noise[index + 1] if eta else None
        x = theirs.step(network(x, torch.full((3,), t)).sample, t, x, eta=eta, variance_noise=fresh).prev_sample
        torch.testing.assert_close(found[index + 1], x, atol=1e-5, rtol=1e-5)
    return found[-1]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_ddim(kind: str, eta: float) -> None:
    compare(LATENT | {"prediction_type": kind}, Network(), eta)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_plms_combines_noises(kind: Any) -> None:
    """As Liu et al. 2022 do, eq. 12; diffusers' PNDM would combine what the network gave."""
    network, x = Network(), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = states(LATENT | {"prediction_type": kind}, network, [x], kind="plms", steps=20)
    theirs: Any = PNDMScheduler.from_config(ddim(LATENT).config, skip_prk_steps=True)
    theirs.set_timesteps(20)
    for t in theirs.timesteps.tolist():
        said = Parametrization(kind, float(theirs.alphas_cumprod[t]))
        x = theirs.step(said.noise(network(x, torch.full((3,), t)).sample, x), t, x).prev_sample
    torch.testing.assert_close(found[-1], x, atol=1e-5, rtol=1e-5)


LIMITS: list[dict[str, Any]] = [
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5},
    {"thresholding": True, "clip_sample": True, "sample_max_value": 3.0},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", LIMITS)
@torch.no_grad()
def test_limits_of_the_predicted_image(limits: dict[str, Any], kind: str) -> None:
    config = LATENT | {"prediction_type": kind} | limits
    without = LATENT | {"prediction_type": kind}
    assert not torch.allclose(compare(config, Network(4.0)), compare(without, Network(4.0)), atol=1e-2)


def test_plms_leaves_the_image_and_so_refuses_to_limit_it() -> None:
    settings = SamplerSettings(kind="plms", steps=20)
    for limits in ({"clip_sample": True}, {"thresholding": True}):
        with pytest.raises(ValueError, match=r"sampler\.kind is plms.*set clip_sample: false"):
            Sampler(ddim(LATENT | limits), settings)


@pytest.mark.parametrize("alpha", [0.9999, 0.5, 0.005])
def test_all_kinds_say_the_same_noise(alpha: float) -> None:
    clean, noise = torch.randn(2, 5, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
    outputs = {"epsilon": noise, "sample": clean, "v_prediction": alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean}
    for kind in KINDS:
        torch.testing.assert_close(Parametrization(kind, alpha).noise(outputs[kind], x), noise)


def test_where_nothing_of_an_image_is_left() -> None:
    schedule = ddim(LATENT | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})
    assert Sampler(schedule, SamplerSettings(steps=10)).steps == 10
    with pytest.raises(ValueError, match="at timestep 999 nothing of an image is left"):
        Sampler(schedule, SamplerSettings(steps=2, timesteps=(999, 500)))


@pytest.mark.parametrize(
    ("steps", "nearest"), [(400, "250 or 500"), (3, "2 or 4"), (999, "500 or 1000"), (1500, "1000")]
)
def test_steps_that_do_not_divide(steps: int, nearest: str) -> None:
    said = rf"sampler\.steps is {steps}, which does not divide the 1000 timesteps of the model; take {nearest} \("
    with pytest.raises(ValueError, match=said):
        Sampler(ddim(LATENT), SamplerSettings(steps=steps))


def test_steps_of_other_grids_need_not_divide() -> None:
    assert Sampler(ddim(LATENT), SamplerSettings(steps=3, timesteps=(900, 500, 3))).steps == 3
    assert Sampler(ddim(LATENT), SamplerSettings(steps=30, spacing="quadratic")).steps == 30
    trailing = ddim(LATENT | {"timestep_spacing": "trailing"})
    assert Sampler(trailing, SamplerSettings(steps=30)).timesteps[0] == 999
