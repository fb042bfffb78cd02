"""A device whose memory is too small for a batch: every kind of work names the setting, and a batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quest.config.dataset import DatasetSettings
from quest.device import OutOfMemory
from quest.diffusion import sampling
from quest.diffusion.denoiser import Denoiser
from quest.learning import reconstruction, scales
from quest.learning.calibration import Calibration
from quest.learning.finetuning import finetune
from quest.methods import efficientdm, quest, traq
from quest.quantization.network import QuantizedNetwork

Make = Callable[..., QuantizedNetwork]
MakeSettings = Callable[..., DatasetSettings]


@contextmanager
def memory_of(samples: int, module: nn.Module, training: bool = True) -> Iterator[None]:
    """Within, calls of ``module`` on more samples find no memory; of those that train it, or of all."""

    def full(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args[0]) > samples and (torch.is_grad_enabled() or not training):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    handle = module.register_forward_pre_hook(full)
    try:
        yield
    finally:
        handle.remove()


def refused(setting: str, size: int, fits: int) -> Any:
    told = rf"^{setting}: a batch of {size} does not fit .*; {fits} fits, found by halving: set {setting} to {fits},"
    return pytest.raises(OutOfMemory, match=told)


def test_learned_rounding(make_quantized: Make, calibration: Calibration, make_settings: MakeSettings) -> None:
    settings = make_settings(reconstruction={"iterations": 2, "batch_size": 8}).reconstruction
    network = make_quantized(calibrated=False)
    module = network.layers()["mid_block.resnets.0.conv1"]
    with refused("reconstruction.batch_size", 8, 2), memory_of(3, module):
        reconstruction.reconstruct(network, calibration, settings, 0, reconstruction.Progress())


def test_learned_scales(make_quantized: Make, calibration: Calibration, make_settings: MakeSettings) -> None:
    settings = make_settings(methods={"q_diffusion": {"iterations": 2, "batch_size": 8}}).methods.q_diffusion
    network = make_quantized(sets=1)
    with refused("methods.q_diffusion.batch_size", 8, 2), memory_of(3, network.layers()["mid_block.resnets.0.conv1"]):
        scales.learn_scales(network, calibration, settings, 0)


@pytest.mark.parametrize(("stage", "index"), [("tla", 0), ("cma", 1)])
def test_stages_of_quest(
    make_quantized: Make, calibration: Calibration, make_settings: MakeSettings, stage: str, index: int
) -> None:
    own = {f"{stage}_batch_size": 4, f"{stage}_samples": 8}
    settings = make_settings(methods={"quest": own}).methods.quest
    network = make_quantized()
    made = quest.STAGES[stage](network, settings)
    targets = made.record(network, calibration)
    with refused(f"methods.quest.{stage}_batch_size", 4, 2), memory_of(2, network.layers()["conv_out"]):
        finetune(network, calibration, made, targets, 0)


def test_efficientdm(make_quantized: Make, calibration: Calibration, make_settings: MakeSettings) -> None:
    settings = make_settings(methods={"efficientdm": {"batch_size": 4, "trajectories": 1}}).methods.efficientdm
    network = make_quantized(calibrated=False)
    with refused("methods.efficientdm.batch_size", 4, 2), memory_of(2, network.layers()["conv_out"]):
        efficientdm.quantize(network, calibration, settings, 0)


def test_traq(make_quantized: Make, calibration: Calibration, make_settings: MakeSettings) -> None:
    settings = make_settings().methods.traq
    network = make_quantized(sets=4, calibrated=False)
    with refused("methods.traq.batch_size", 4, 2), memory_of(2, network.layers()["conv_out"]):
        traq.quantize(network, calibration, settings, 0)


def test_sampling(denoiser: Denoiser, make_settings: MakeSettings) -> None:
    settings = make_settings(evaluation={"batch_size": 6})
    with refused("evaluation.batch_size", 6, 3), memory_of(4, denoiser.network, training=False):
        sampling.draw(denoiser, denoiser.network, settings, 0, range(8), torch.device("cpu"))
