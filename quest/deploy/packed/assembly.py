"""A quantized network taken apart into a description and tensors, and a packed one put together from a description."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures
from quest.artifacts import ArtifactError
from quest.deploy.packed import bitstream
from quest.deploy.packed.description import (
    DENSE,
    MULTIPLES,
    Description,
    LayerDescription,
    SiteDescription,
    TablesDescription,
    is_dense,
)
from quest.deploy.packed.layers import ActivationGrid, Correction, Packed, Tables, pack_layer
from quest.diffusion.correction import Correction as SamplerCorrection
from quest.quantization import packing
from quest.quantization.attention import QuantizedAttention
from quest.quantization.granularity import PerGroup
from quest.quantization.layers import QuantizedLayer, Switches
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer, Split, Widths
from quest.quantization.steps import Step

TABLES, CORRECTION = "quest_tables", "quest_correction"
"""Names of the modules that a packed network has beside its own."""


class _Columns:
    """The activation tables while they are gathered: the scales of one place after another."""

    def __init__(self) -> None:
        self._scales: list[Tensor] = []
        self._zero_points: list[Tensor] = []
        self._multiples: list[Tensor] = []
        self._places = self._zero_places = self._multiple_places = 0

    def add(self, name: str, site: nn.Module) -> SiteDescription:
        """Take the scales of one activation quantizer, or of one for each width, whose rows follow one another.
        Raises ValueError where a set was never calibrated."""
        quantizers: list[Any] = list(site) if isinstance(site, Widths) else [site]
        for each in quantizers:
            if not bool(each.calibrated.all()):
                missing = (~each.calibrated).nonzero().flatten().tolist()
                raise ValueError(f"{name}: activation scales of sets {missing} were never calibrated")
        layout, scales = _gathered([each.scale.detach() for each in quantizers])
        zero_layout, zero_points = _gathered([each.zero_point for each in quantizers])
        multiple_at = None
        if any(each.multiple is not None for each in quantizers):
            _, multiples = _gathered([_multiples(each) for each in quantizers])
            self._multiples.append(multiples)
            multiple_at = self._multiple_places
            self._multiple_places += multiples.shape[1]
        described = SiteDescription(
            bits=tuple(each.grid.bits for each in quantizers),
            kind=quantizers[0].grid.kind,
            layout=layout,
            at=self._places,
            zero_layout=None if zero_layout == layout else zero_layout,
            zero_at=None if self._zero_places == self._places else self._zero_places,
            multiple_at=multiple_at,
        )
        self._scales.append(scales)
        self._zero_points.append(zero_points)
        self._places += scales.shape[1]
        self._zero_places += zero_points.shape[1]
        return described

    def done(self, step: Step, timesteps: Sequence[int]) -> tuple[TablesDescription, dict[str, Tensor]]:
        """What was gathered; step: which row each sampling step has, timesteps: that they are at."""
        rows = step.widths.cpu() * step.sets + step.set_of(torch.arange(step.steps))
        scales, zero_points = (torch.cat(each, 1) for each in (self._scales, self._zero_points))
        zero_points = _smallest(zero_points)
        tensors = {"timesteps": torch.tensor(list(timesteps)), "rows": rows, "scales": scales}
        if self._multiples:
            tensors["multiples"] = torch.cat(self._multiples, 1)
        described = TablesDescription(
            steps=step.steps,
            rows=len(scales),
            places=self._places,
            zero_point=_name(zero_points),
            zero_places=None if self._zero_places == self._places else self._zero_places,
            multiple_places=self._multiple_places,
        )
        return described, tensors | {"zero_points": zero_points}


def take_apart(
    network: QuantizedNetwork, timesteps: Sequence[int], correction: SamplerCorrection | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of a Description that a network decides, and the tensors of the packed one, on the CPU.

    timesteps: that its sampling steps are at. Raises ValueError where an activation set was never calibrated.
    """
    layers, attention, tensors, columns = {}, {}, {}, _Columns()
    for name, layer in network.layers().items():
        layers[name], own = _layer(name, layer, columns)
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    for name, module in network.network.named_modules():
        if isinstance(module, QuantizedAttention):
            sites = {operand: columns.add(f"{name}.{operand}", site) for operand, site in module.named_children()}
            attention |= {name: sites} if sites else {}
    tables, own = columns.done(network.step, timesteps)
    tensors |= {f"{TABLES}.{key}": tensor for key, tensor in own.items()}
    fields: dict[str, Any] = {"tables": tables, "layers": layers, "attention": attention}
    if tables.multiple_places:
        fields["format"] = MULTIPLES
    elif any(layer.dense for layer in layers.values()):
        fields["format"] = DENSE
    if correction is not None:
        tensors |= {f"{CORRECTION}.slope": correction.slope, f"{CORRECTION}.bias": correction.bias}
        fields["correction"] = correction.bias.shape[1]
    tensors |= _unquantized(network)
    return fields, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def assemble(network: nn.Module, description: Description, *, follow: bool = True) -> Tables:
    """Make a diffusers model a packed one, in place; its tensors are still to be loaded. Returns its tables.

    follow: whether each call takes the tables of its timestep; else those of the step last set (`Tables.use`).
    Raises ArtifactError where the model has not what the description names.
    """
    tables = Tables(description.tables)
    architecture = architectures.of(network)
    for name, heads in description.heads.items():
        if heads != architecture.heads().get(name):
            architecture.set_heads(name, heads)
    for name in architecture.attentions():
        products = architecture.quantize_products(name, Switches())
        path = next(path for path, module in network.named_modules() if module is products)
        for operand, site in description.attention.get(path, {}).items():
            products.add_module(operand, ActivationGrid(site, tables))
    for name, layer in description.layers.items():
        parent, _, child = name.rpartition(".")
        try:
            packed = pack_layer(network.get_submodule(name), layer, tables)
        except (AttributeError, ValueError) as error:
            raise ArtifactError(
                f"quantization_config.layers.{name}: {error}; the model is not the one that was packed"
            ) from error
        network.get_submodule(parent).add_module(child, packed)
    network.add_module(TABLES, tables)
    if follow:
        network.register_forward_pre_hook(partial(_set_tables, architecture.timestep), with_kwargs=True)
    if description.correction is not None:
        network.add_module(CORRECTION, Correction(description.tables.steps, description.correction, tables))
        network.register_forward_hook(_correct)
    return tables


def packed(quantized: QuantizedNetwork, timesteps: Sequence[int], *, follow: bool = True) -> tuple[Any, Tables]:
    """The packed form of a quantized network, which stays as it is, on its device, and its tables.

    timesteps, follow: as in `take_apart` and `assemble`, which say what is raised.
    """
    source: Any = quantized.network
    fields, tensors = take_apart(quantized, timesteps, None)
    heads = quantized.architecture.heads()
    made = architectures.build(type(source).__name__, source.config).eval().requires_grad_(False)
    description = Description(bits=str(quantized.recipe.bits), method="", heads=heads, **fields)
    tables = assemble(made, description, follow=follow)
    made.load_state_dict(tensors)
    return made.to(next(source.parameters()).device), tables


def own_tensors(network: nn.Module) -> set[str]:
    """Names of the tensors that keep their dtype whatever the model is loaded as: codes, scales, tables."""
    names = set()
    for path, module in network.named_modules():
        if isinstance(module, Packed):
            names |= {f"{path}.{name}" for name in ("codes", "weight_scale", "weight_zero_point")}
        elif isinstance(module, Tables | Correction):
            names |= {f"{path}.{name}" for name in module.state_dict()}
    return names


def packed_layers(network: nn.Module) -> dict[str, Packed]:
    """The packed layers of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Packed)}


def _set_tables(timestep: Callable[..., Any], network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    tables = network.get_submodule(TABLES)
    assert isinstance(tables, Tables)
    tables.set(timestep(args, named))


def _correct(network: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    correction = network.get_submodule(CORRECTION)
    if isinstance(output, tuple):
        return (correction(output[0]), *output[1:])
    output.sample = correction(output.sample)
    return output


def _layer(name: str, layer: QuantizedLayer, columns: _Columns) -> tuple[LayerDescription, dict[str, Tensor]]:
    parts = layer.weight_parts()
    codes = torch.cat([quantizer.codes(weight) for quantizer, weight in parts], 1)
    quantizers = [quantizer for quantizer, _ in parts]
    scale, zero_point = (
        torch.cat([getattr(each, of).reshape(len(codes), -1) for each in quantizers], 1)
        for of in ("scale", "zero_point")
    )
    zero_point = _smallest(zero_point)
    groups, layout = None, quantizers[0].granularity
    if len(parts) > 1 and not isinstance(layout, PerGroup):
        groups = tuple(math.prod(weight.shape[1:]) for _, weight in parts)
    inputs = layer.input_quantizer
    split = isinstance(inputs, Split)
    grid = quantizers[0].grid
    dense = is_dense(grid.bits)
    sites = [inputs.first, inputs.second] if split else [inputs]
    description = LayerDescription(
        bits=grid.bits,
        shape=tuple(codes.shape),
        dense=dense,
        groups=groups,
        group=layout.size if isinstance(layout, PerGroup) else None,
        zero_point=_name(zero_point),
        input=tuple(columns.add(f"{name}, its input", site) for site in sites if not isinstance(site, nn.Identity)),
        split_at=inputs.at if split else None,
    )
    if dense:
        packing.check_codes(codes, grid, f"{name}.codes")
    packed = bitstream.pack(codes - grid.low, grid.bits) if dense else packing.pack(codes, grid, f"{name}.codes")
    return description, {"codes": packed, "weight_scale": scale, "weight_zero_point": zero_point}


def _gathered(tables: list[Tensor]) -> tuple[tuple[int, ...], Tensor]:
    """Scales or zero points of one site, (sets, …) for each width: the layout of a set, and all as (rows, places)."""
    shape = torch.broadcast_shapes(*(table.shape for table in tables))
    return tuple(shape[1:]), torch.cat([table.expand(shape).flatten(1) for table in tables])


def _multiples(quantizer: ActivationQuantizer) -> Tensor:
    """The multiples of one quantizer, all one where it has none, uint8 of the shape of its zero points."""
    multiple = quantizer.multiple
    return torch.ones_like(quantizer.zero_point, dtype=torch.uint8) if multiple is None else multiple


def _smallest(zero_point: Tensor) -> Tensor:
    """Whole numbers in the smallest type that holds them all."""
    low, high = (float(bound) for bound in zero_point.aminmax())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError(f"zero points from {low} to {high}; expected finite numbers")
    kinds = (torch.uint8, torch.int16, torch.int32)
    return zero_point.round().to(
        next(kind for kind in kinds if torch.iinfo(kind).min <= low <= high <= torch.iinfo(kind).max)
    )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unquantized(network: QuantizedNetwork) -> Mapping[str, Tensor]:
    """Parameters and buffers that stay in full precision: biases, norms, embeddings, layers that are not quantized."""
    owned = tuple(f"{name}." for name, module in network.network.named_modules() if isinstance(module, QuantizedLayer))
    owned += tuple(
        f"{name}." for name, module in network.network.named_modules() if isinstance(module, QuantizedAttention)
    )
    tensors = network.network.state_dict()
    biases = {f"{name}.bias": layer.bias for name, layer in network.layers().items() if layer.bias is not None}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(owned)} | biases
