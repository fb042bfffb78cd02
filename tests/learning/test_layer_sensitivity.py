"""How far samples move by one layer: less with more bits, nothing where nothing is read, and nothing is left behind."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.config.sampling import SamplerSettings
from quest.config.values import Bits
from quest.deploy.start import recipe as make_recipe
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser, Outputs, predictor
from quest.diffusion.samplers import Sampler
from quest.learning import sensitivity
from quest.learning.calibration import Calibration
from quest.learning.progress import Progress
from quest.noise import HELD_OUT, SampleNoise
from quest.quantization.network import QuantizedNetwork

NAMES = ["conv_in", "time_embedding.linear_1", "mid_block.resnets.0.conv1", "conv_out"]
WIDTHS = (2, 3, 4, 8)


def network_of(denoiser: Denoiser, settings: DatasetSettings) -> QuantizedNetwork:
    return QuantizedNetwork(denoiser.network, make_recipe(settings, Bits(8, 8)), denoiser.example(), search=False)


def few(denoiser: Denoiser, calibration: Calibration) -> Sampler:
    return denoiser.sampler(sensitivity.few_steps(calibration.sampler))


def test_few_steps_are_of_the_timesteps_of_the_sampler(denoiser: Denoiser) -> None:
    plms = denoiser.sampler(SamplerSettings(kind="plms", steps=50, guidance_scale=2.0))
    walked = denoiser.sampler(sensitivity.few_steps(plms))
    assert (walked.steps, walked.eta, walked.guidance_scale, len(walked.calls())) == (10, 0.0, 2.0, 10)
    assert set(walked.timesteps.tolist()) < set(plms.timesteps.tolist())
    assert walked.timesteps[[0, -1]].tolist() == plms.timesteps[[0, -1]].tolist()
    short = denoiser.sampler(SamplerSettings(steps=4, eta=1.0))
    assert denoiser.sampler(sensitivity.few_steps(short)).timesteps.tolist() == short.timesteps.tolist()


def test_it_is_how_far_samples_move(denoiser: Denoiser, calibration: Calibration, settings: DatasetSettings) -> None:
    network, name = network_of(denoiser, settings), "time_embedding.linear_1"
    sampler = few(denoiser, calibration)
    found = sensitivity.sensitivities(network, sampler, calibration, [name], WIDTHS, 0)

    def drawn() -> Tensor:
        noise = SampleNoise("trajectories", HELD_OUT, range(sensitivity.TRAJECTORIES), calibration.x.shape[2:])
        with network.quantizing(weights=False, activations=False):
            return deque(sampler.trajectory(predictor(Outputs(network), None), noise, calibration.x.device), 1).pop()

    full, layer = drawn(), network.layers()[name]
    with torch.no_grad():
        layer.weight.copy_(sensitivity._rounded(network, layer, 2))
    each = (drawn() - full).square().flatten(1).mean(1)
    # Processors sum in other orders, which moves the last of ten steps by some 1e-5; the mean is far from the median.
    assert found[name][2] == pytest.approx(each.median().item(), rel=1e-3)
    assert abs(each.mean() / each.median() - 1) > 0.01


def test_what_a_layer_moves(
    model_file: Path, denoiser: Denoiser, calibration: Calibration, settings: DatasetSettings, tmp_path: Path
) -> None:
    network, sampler = network_of(denoiser, settings), few(denoiser, calibration)
    network.layers()["mid_block.resnets.0.conv1"].weight.data.zero_()  # of which every grid has the zero
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept = tmp_path / "progress.safetensors"
    found = sensitivity.sensitivities(network, sampler, calibration, NAMES, WIDTHS, 0, Progress(kept, {}))
    assert list(found) == NAMES
    for name, errors in found.items():
        assert list(errors) == list(WIDTHS)
        if name == "mid_block.resnets.0.conv1":
            assert set(errors.values()) == {0.0}
        else:
            assert errors[2] > errors[4] > errors[8] > 0, name
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    again = network_of(denoisers.load(model_file), settings)
    going_on = sensitivity.sensitivities(again, sampler, calibration, NAMES, WIDTHS, 0, Progress(kept, {}))
    assert going_on == found, "what is known is not measured again: here the layer is no longer zero"
    another = sensitivity.sensitivities(again, sampler, calibration, NAMES[:1], WIDTHS, 1)
    assert another["conv_in"][2] == pytest.approx(found["conv_in"][2], rel=0.9)
    assert another["conv_in"] != found["conv_in"], "a chain of another seed looks at other states"


def test_above_what_is_measured_the_error_follows_that_of_the_weight() -> None:
    assert sensitivity._continued({2: 9.0, 4: 2.0}, {2: 80.0, 4: 20.0, 6: 5.0, 8: 1.0}) == {
        2: 9.0,
        4: 2.0,
        6: 0.5,
        8: 0.1,
    }
    assert sensitivity._continued({4: 0.0}, {4: 0.0, 8: 0.0}) == {4: 0.0, 8: 0.0}
