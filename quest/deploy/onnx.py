"""A W8A8 denoiser as an ONNX file of quantize and dequantize nodes (QDQ), which runtimes for it read.

Weights are stored as bytes, in DequantizeLinear; each activation passes QuantizeLinear and DequantizeLinear, whose
scale the file looks up by the timestep that it is given. ONNX's quantize rounds and saturates as the grids here do.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quest.artifacts import ArtifactError, atomic
from quest.deploy.packed.assembly import TABLES, assemble, packed_layers, take_apart
from quest.deploy.packed.description import Description
from quest.deploy.packed.layers import ActivationGrid, Packed, Tables
from quest.deploy.quantized import QuantizedModel
from quest.quantization.layers import operation

_OPSET = 17


def export_onnx(model: QuantizedModel, output: str | PathLike[str], *, force: bool = False) -> Path:
    """Write the denoiser of ``model`` to the file ``output``: inputs sample (N, C, H, W), timestep (1,) and, of a
    conditional one, encoder_hidden_states (N, L, d), or class_labels (N,) int64 where it embeds classes itself; output
    noise (N, C, H, W). N is free.

    Raises ArtifactError when ``output`` is there and not to be replaced, ValueError for a model that has no such form:
    one with activations of other bits than 8, or with more than one scale for an activation or for a weight's channel.
    """
    output = Path(output)
    if output.exists() and not force:
        raise ArtifactError(f"{output}: is there already; choose another, or --force to replace it")
    if model.checkpoint.correction is not None:
        raise ValueError(f"{model!r}: the correction of its sampler has no ONNX form; expected a method without one")
    timesteps = model.around.sampler(model.sampler).timesteps.tolist()
    fields, tensors = take_apart(model.network, timesteps, None)
    source: Any = model.network.network
    packed = type(source).from_config(source.config).eval().requires_grad_(False)
    heads = model.network.architecture.heads()
    assemble(packed, Description(bits=model.label, method=model.method, heads=heads, **fields))
    packed.load_state_dict(tensors)
    x, _, *context = copy.deepcopy(model.network.example)
    write(_Network(packed), (x.cpu(), torch.tensor([timesteps[0]]), *(each.cpu() for each in context)), output)
    return output


def write(network: nn.Module, given: tuple[Tensor, ...], output: Path) -> None:
    """Trace ``network``, of x, timesteps and perhaps a context to one tensor, into the file ``output``; N is free."""
    names = ["sample", "timestep", *("encoder_hidden_states" if c.ndim == 3 else "class_labels" for c in given[2:])]
    free = {name: {0: "batch"} for name in ("noise", names[0], *names[2:])}
    how: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with atomic(output) as partial, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: the shapes that it warns of do not change
        torch.onnx.export(
            network, given, str(partial), input_names=names, output_names=["noise"], dynamic_axes=free,
            opset_version=_OPSET, do_constant_folding=False, **how,
        )  # fmt: skip


class _Row:
    """The activation scales of the present call, while it is traced."""

    scale: Tensor
    zero_point: Tensor


class _Network(nn.Module):
    """A packed network whose grids and weights are ONNX's operators."""

    def __init__(self, packed: Any):
        super().__init__()
        row = _Row()
        tables = packed.get_submodule(TABLES)
        assert isinstance(tables, Tables)
        for name, layer in packed_layers(packed).items():
            _replace(packed, name, _Layer(name, layer))
        for name, module in list(packed.named_modules()):
            if isinstance(module, ActivationGrid):
                _replace(packed, name, _Grid(name, module, row))
        if tables.zero_points.dtype != torch.uint8:
            raise ValueError("zero points of activations do not fit into a byte; ONNX has no form for them")
        packed._forward_pre_hooks.clear()
        packed._forward_pre_hooks_with_kwargs.clear()
        self.packed, self._row = packed, row

    def forward(self, sample: Tensor, timestep: Tensor, *context: Tensor) -> Tensor:
        tables = self.packed.get_submodule(TABLES)
        step = (tables.timesteps - timestep).abs().argmin().view(1)
        row = tables.rows.index_select(0, step)
        self._row.scale = tables.scales.index_select(0, row)[0]
        self._row.zero_point = tables.zero_points.index_select(0, row)[0]
        return self.packed(sample, timestep, *context, return_dict=False)[0]


class _Grid(nn.Module):
    def __init__(self, name: str, grid: ActivationGrid, row: _Row):
        super().__init__()
        site = grid.site
        scales, zero_points = len(site.scales), len(site.zero_points)
        if site.bits != (8,) or site.kind not in ("asymmetric", "positive") or (scales, zero_points) != (1, 1):
            raise ValueError(
                f"{name}: found activations of {site.bits} bits, {site.kind}, with {scales} scales and {zero_points} "
                "zero points; ONNX takes 8 bits, asymmetric, with one of each (quantizer.activation_granularity "
                "per_tensor)"
            )
        self._at, self._zero_at, self._row = site.scales.start, site.zero_points.start, row

    def forward(self, x: Tensor) -> Tensor:
        return _QuantizeDequantize.apply(x, self._row.scale[self._at], self._row.zero_point[self._zero_at])  # type: ignore[return-value]


class _Layer(nn.Module):
    def __init__(self, name: str, layer: Packed):
        super().__init__()
        if layer.description.scales != 1 or layer.description.zero_point != "uint8":
            raise ValueError(
                f"{name}: found {layer.description.scales} weight scales to a channel, ONNX takes one, with a zero "
                "point of a byte"
            )
        self.register_buffer("codes", layer.whole_codes().to(torch.uint8))
        self.register_buffer("scale", layer.weight_scale[:, 0].clone())
        self.register_buffer("zero_point", layer.weight_zero_point[:, 0].clone())
        self.bias, self.input = layer.bias, layer.input
        self._operation = operation(layer)

    def forward(self, x: Tensor) -> Tensor:
        weight = _Dequantize.apply(self.codes, self.scale, self.zero_point)
        return self._operation(self.input(x), weight, self.bias)  # type: ignore[arg-type]


class _QuantizeDequantize(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:  # type: ignore[override]
        shift = zero_point.float()
        return (torch.clamp(torch.round(x / scale) + shift, 0, 255) - shift) * scale

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        codes = g.op("QuantizeLinear", x, scale, zero_point)
        return g.op("DequantizeLinear", codes, scale, zero_point).setType(x.type())


class _Dequantize(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:  # type: ignore[override]
        shape = (-1, *(1,) * (codes.ndim - 1))
        return (codes.float() - zero_point.float().view(shape)) * scale.view(shape)

    @staticmethod
    def symbolic(g: Any, codes: Any, scale: Any, zero_point: Any) -> Any:
        found = g.op("DequantizeLinear", codes, scale, zero_point, axis_i=0)
        return found.setType(codes.type().with_dtype(torch.float32))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    network.get_submodule(parent)._modules[child] = module
