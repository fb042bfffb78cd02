"""What other libraries make of a network on a CPU, where they are installed: torchao and OpenVINO.

Each function gives a way to call the network on given arguments, or says why there is none here.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quest.config.sampling import SamplerSettings
from quest.deploy import onnx
from quest.deploy.checkpoints import Checkpoint
from quest.deploy.quantized import QuantizedModel
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork


class Way(NamedTuple):
    """call: the network's output (N, C, H, W), computed anew. mib: of its weights as they are kept."""

    call: Callable[[], Tensor]
    mib: float


def bytes_of(tensor: Tensor) -> int:
    """Bytes that a tensor keeps, also where it is a quantized one that stands for another."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    parts, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return sum(bytes_of(getattr(tensor, name)) for name in parts)


def mib(network: nn.Module) -> float:
    """Of parameters and stored buffers."""
    return sum(map(bytes_of, network.state_dict().values())) / 2**20


def missing(package: str) -> str | None:
    """What to say where an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        return f"not measured: {package} is not installed (pip install 'quest-diffusion[{package}]')"
    return None


def torchao(network: nn.Module, arguments: tuple[Any, ...]) -> Way | str:
    """Linear layers in int8, each row of activations scaled as it comes; torchao has no convolution of integers."""
    if (why := missing("torchao")) is not None:
        return why
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8DynamicActivationInt8WeightConfig,
        quantize_,
    )

    own = copy.deepcopy(network)
    quantize_(own, Int8DynamicActivationInt8WeightConfig())
    return Way(lambda: own(*arguments).sample, mib(own))


def openvino(network: nn.Module, arguments: tuple[Any, ...], folder: Path) -> Way | str:
    """The network in full precision."""
    if (why := missing("openvino")) is not None:
        return why
    file = folder / "float32.onnx"
    with torch.no_grad():
        onnx.write(_FirstOutput(network).eval(), arguments, file)  # tracing ends in the mode of what it is given
    return _compiled(file, arguments)


def openvino_integers(
    quantized: QuantizedNetwork, around: Denoiser, timestep: int, arguments: tuple[Any, ...], folder: Path
) -> Way | str:
    """The quantized network as QDQ, of which OpenVINO makes layers of int8. timestep: the only one of its sampler."""
    if (why := missing("openvino")) is not None:
        return why
    file = folder / "integers.onnx"
    sampler = SamplerSettings(steps=1, timesteps=(timestep,))
    try:
        onnx.export_onnx(QuantizedModel(Checkpoint(quantized, "nearest", sampler), around), file)
    except ValueError as error:  # of other bits
        return f"not measured: {error}"
    return _compiled(file, arguments)


class _FirstOutput(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.network(*arguments, return_dict=False)[0]


def _compiled(file: Path, arguments: tuple[Any, ...]) -> Way:
    from openvino import Core  # pyright: ignore[reportMissingImports]

    core = Core()
    model = core.read_model(file)
    x, timesteps, *context = arguments
    given = [x, timesteps[:1], *context]
    model.reshape({port.get_any_name(): list(each.shape) for port, each in zip(model.inputs, given, strict=True)})
    how = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", how).create_infer_request()
    arrays = [each.numpy() for each in given]
    return Way(lambda: torch.from_numpy(request.infer(arrays)[0]), file.stat().st_size / 2**20)
