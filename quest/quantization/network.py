"""The quantized network: a diffusers network whose layers and attention products compute on grids, from a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from quest.config.quantizer import QuantizerSettings
from quest.config.values import Bits
from quest.quantization import granularity, packing, roles
from quest.quantization.account import account, assert_levels
from quest.quantization.granularity import Granularity, PerAxis, PerGroup
from quest.quantization.grid import Grid, Search, dequantize
from quest.quantization.layers import QuantizedAttention, QuantizedLayer, Switches
from quest.quantization.policy import COMMON, FULL, Policy
from quest.quantization.quantizers import ActivationQuantizer, Split, Step, WeightQuantizer, Widths
from quest.quantization.roles import Role
from quest.quantization.rounding import Nearest

_USED = "step_bits"  # tensor of the activation bit-width of each sampling step


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the grids of a quantized network.

    bits: of weights and activations. sets, steps: groups of sampling steps with their own activation scales, and
    sampling steps. policy: which layers have other bits. lower: activation bit-widths below that of ``bits``, which a
    sampling step may use instead (`QuantizedNetwork.use`).
    """

    bits: Bits
    quantizer: QuantizerSettings
    sets: int
    steps: int
    policy: Policy = COMMON
    lower: tuple[int, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON, for manifests."""
        quantizer = self.quantizer.model_dump(mode="json")
        return {
            "bits": str(self.bits),
            "quantizer": quantizer,
            "sets": self.sets,
            "steps": self.steps,
            "policy": self.policy.plain(),
            "lower": list(self.lower),
        }

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Recipe:
        """Inverse of `plain`."""
        quantizer = QuantizerSettings.model_validate(content["quantizer"])
        policy = Policy.from_plain(content["policy"])
        lower = tuple(content.get("lower", ()))
        return cls(Bits.parse(content["bits"]), quantizer, content["sets"], content["steps"], policy, lower)

    @property
    def widths(self) -> tuple[int, ...]:
        """All activation bit-widths, that of ``bits`` first."""
        return (self.bits.activation, *self.lower)

    def layer_bits(self, name: str, role: Role, width: int | None = None) -> Bits:
        """Bits of a layer at an activation bit-width, that of ``bits`` by default; inputs of the first and the last
        convolution have their own (QuEST, released code)."""
        edge = role in (Role.FIRST, Role.LAST)
        activation = self.quantizer.edge_activation_bits if edge else width or self.bits.activation
        return self.policy.bits(name, role, Bits(self.bits.weight, activation))

    def weight_granularity(self, role: Role) -> Granularity:
        """What shares a weight scale; the few inputs of the first convolution are never grouped."""
        group = self.quantizer.weight_group
        return PerAxis(0) if group is None or role is Role.FIRST else PerGroup(group)

    def activation_granularity(self, bits: int) -> str:
        """The name of what shares an activation scale at a bit-width."""
        return self.quantizer.activation_granularity["4" if bits <= 4 else "8"]

    def activation_grid(self, bits: int) -> Grid:
        """Grid of layer inputs and attention operands."""
        if self.quantizer.legacy_symmetric_levels:
            return Grid(bits, "legacy_symmetric")
        return Grid(bits, "symmetric" if self.quantizer.activation_symmetric else "asymmetric")


class QuantizedNetwork(nn.Module):
    """A network on grids. Called like the network it was made from, after `set_step`.

    network: taken over and changed in place. recipe: the grids. example: arguments of one call with a batch of 1, from
    which the shapes of all activations are read. overrides: name patterns to roles, for layers that the architecture
    does not explain. search: whether to search weight scales; `restore` brings its own.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        example: tuple[Any, ...],
        overrides: Mapping[str, Role] | None = None,
        search: bool = True,
    ):
        super().__init__()
        self.recipe = recipe
        self._weight_search: Search = recipe.quantizer.weight_search if search else "max"
        self.network = network.eval().requires_grad_(False)
        self.step = Step(recipe.sets, recipe.steps)
        self.switches = Switches()
        self.example = example
        layer_roles = roles.find(network, overrides)
        attentions = [module for module in network.modules() if isinstance(module, Attention)]
        for attention in attentions:
            attention.set_processor(QuantizedAttention(self.switches))  # type: ignore[arg-type]
        shapes = self._input_shapes(layer_roles)
        for attention in attentions if recipe.policy.attention else []:
            self._quantize_operands(attention.processor)  # type: ignore[arg-type]
        for name, role in layer_roles.items():
            self._quantize_layer(name, role, shapes[name])
        self.to(next(network.parameters()).device)
        for name, site in self.sites().items():
            site.name = name
        self.requires_grad_(False)  # a method switches on what it trains

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.network(*args, **kwargs)

    def set_step(self, step: int) -> None:
        """Say which sampling step (0 is the noisiest) the coming calls are at. Raises ValueError when out of range."""
        self.step.set(step)

    def use(self, bits: Sequence[int]) -> None:
        """Say which activation bit-width each sampling step uses, noisiest first; those of the recipe's ``bits`` unless
        said. Raises ValueError for another number of steps, or a width that the recipe does not have."""
        known = self.recipe.widths
        if len(bits) != self.step.steps or not set(bits) <= set(known):
            raise ValueError(
                f"activation bits of sampling steps: found {list(bits)}, expected {self.step.steps} of {list(known)}"
            )
        self.step.widths = [known.index(each) for each in bits]

    def used(self) -> list[int]:
        """The activation bit-width of each sampling step, noisiest first."""
        return [self.recipe.widths[width] for width in self.step.widths]

    def layers(self) -> dict[str, QuantizedLayer]:
        """Quantized layers by name, in registration order."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, QuantizedLayer)}

    def sites(self) -> dict[str, ActivationQuantizer]:
        """Activation quantizers by name: layer inputs and attention operands."""
        return {
            name: module for name, module in self.network.named_modules() if isinstance(module, ActivationQuantizer)
        }

    @contextmanager
    def quantizing(self, *, weights: bool, activations: bool) -> Iterator[None]:
        """Within, quantize only what is asked for; with neither, this is the full-precision network."""
        before = self.switches.weights, self.switches.activations
        self.switches.weights, self.switches.activations = weights, activations
        try:
            yield
        finally:
            self.switches.weights, self.switches.activations = before

    @contextmanager
    def frozen(self, but: Container[str] = ()) -> Iterator[None]:
        """Within, weights are quantized once instead of at each call, except those of the layers named in ``but``: for
        sampling, and for training where the other weights stay as they are."""
        layers = [layer for name, layer in self.layers().items() if name not in but]
        try:
            for layer in layers:
                layer.freeze()
            yield
        finally:
            for layer in layers:
                layer.unfreeze()

    def account(self) -> dict[str, Any]:
        """The bit account of one call, in which no weight and no activation may use more levels than its bits. Where
        sampling steps have different bits, bit operations and activation bits are means over the steps.

        Raises ValueError naming the layer or attention operand, how many levels were found and how many expected.
        """
        for name, layer in self.layers().items():
            for part, (quantizer, weight) in enumerate(layer.weight_parts()):
                what = f"{name}.weight[{part}]"
                packing.check_codes(quantizer.codes(weight), quantizer.grid, what)
                with torch.no_grad():
                    assert_levels(quantizer.granularity.rows(quantizer(weight)), quantizer.grid, what)
        found: dict[str, Any] = {}
        with self._asserting_levels():
            for width, steps in Counter(self.step.widths).items():
                self.set_step(self.step.widths.index(width))
                call = account(self, self.example)
                for key in ("gbops", "mean_activation_bits"):
                    call[key] = found.get(key, 0.0) + call[key] * steps / self.step.steps
                found = call
        quantizer, used = self.recipe.quantizer, sorted(set(self.used()), reverse=True)
        return found | {
            "weight_granularity": "per_channel"
            if quantizer.weight_group is None
            else f"groups_of_{quantizer.weight_group}",
            "activation_granularity": " and ".join(
                dict.fromkeys(self.recipe.activation_granularity(bits) for bits in used)
            ),
            "activation_levels": self.recipe.activation_grid(self.recipe.bits.activation).levels,
            "policy": self.recipe.policy.name,
        }

    @contextmanager
    def _asserting_levels(self) -> Iterator[None]:
        """Within, calls raise ValueError where an activation uses more levels than its bits."""

        def check(site: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(site, ActivationQuantizer)
            assert_levels(site.granularity.rows(output), site.grid, f"activation {site.name}")

        handles = [site.register_forward_hook(check) for site in self.sites().values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def export(self) -> dict[str, Tensor]:
        """The network as it is stored: packed weight codes, scales and zero points, activation scales, and the
        parameters that stay full precision. Raises ValueError when an activation set was never calibrated."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers().items():
            for part, (quantizer, weight) in enumerate(layer.weight_parts()):
                key = f"{name}.weight.{part}"
                tensors[f"{key}.codes"] = packing.pack(quantizer.codes(weight), quantizer.grid, f"{key}.codes")
                tensors[f"{key}.scale"] = quantizer.scale
                tensors[f"{key}.zero_point"] = quantizer.zero_point.to(torch.int32)
        for name, site in self.sites().items():
            if not bool(site.calibrated.all()):
                missing = (~site.calibrated).nonzero().flatten().tolist()
                raise ValueError(f"{name}: activation scales of sets {missing} were never calibrated")
            tensors[f"{name}.scale"] = site.scale
            tensors[f"{name}.zero_point"] = site.zero_point.round().to(torch.int32)
        if self.recipe.lower:
            tensors[_USED] = torch.tensor(self.used(), dtype=torch.uint8)
        return tensors | self._full_precision()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `export` gave. Raises ValueError naming the first tensor that is missing, strange or misshapen."""
        expected = set(self._full_precision())
        for name, layer in self.layers().items():
            halves = []
            for part, (quantizer, weight) in enumerate(layer.weight_parts()):
                key = f"{name}.weight.{part}"
                expected |= {f"{key}.codes", f"{key}.scale", f"{key}.zero_point"}
                quantizer.rounding = Nearest()  # codes are whole: rounding them again changes nothing
                _assign(quantizer.scale, tensors, f"{key}.scale")
                _assign(quantizer.zero_point, tensors, f"{key}.zero_point")
                codes = packing.unpack(_get(tensors, f"{key}.codes"), quantizer.grid, weight.shape, f"{key}.codes")
                view = quantizer.granularity.view(codes.to(weight.device))
                halves.append(dequantize(view, quantizer.scale, quantizer.zero_point).view_as(weight))
            layer.weight.data.copy_(torch.cat(halves, 1) if len(halves) > 1 else halves[0])
        for name, site in self.sites().items():
            expected |= {f"{name}.scale", f"{name}.zero_point"}
            _assign(site.scale, tensors, f"{name}.scale")
            _assign(site.zero_point, tensors, f"{name}.zero_point")
            site.calibrated.fill_(True)
        if self.recipe.lower:
            expected.add(_USED)
            try:
                self.use(_get(tensors, _USED).flatten().tolist())
            except ValueError as error:
                raise ValueError(f"{_USED}: {error}") from error
        for name, parameter in self._full_precision().items():
            _assign(parameter, tensors, name)
        if strange := sorted(set(tensors) - expected):
            raise ValueError(f"{strange[0]}: not part of this network under recipe {self.recipe.plain()}")

    def _full_precision(self) -> dict[str, Tensor]:
        """Parameters and buffers that no quantizer owns: biases, norms, embeddings."""
        owned = {f"{name}.weight" for name in self.layers()}
        quantizers = {
            name for name, m in self.network.named_modules() if isinstance(m, ActivationQuantizer | WeightQuantizer)
        }
        return {
            name: tensor
            for name, tensor in self.network.state_dict(keep_vars=True).items()
            if name not in owned and not any(name.startswith(f"{quantizer}.") for quantizer in quantizers)
        }

    def _input_shapes(self, layer_roles: Mapping[str, Role]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}

        def record(name: str):
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                shapes[name] = tuple(inputs[0].shape[1:])

            return hook

        handles = [self.network.get_submodule(name).register_forward_pre_hook(record(name)) for name in layer_roles]
        try:
            with torch.no_grad():
                self.network(*self.example)
        finally:
            for handle in handles:
                handle.remove()
        if unused := [name for name in layer_roles if name not in shapes]:
            raise ValueError(f"layers that one call of the network never reaches: {', '.join(unused)}")
        return shapes

    def _quantize_layer(self, name: str, role: Role, shape: tuple[int, ...]) -> None:
        parent_name, _, child = name.rpartition(".")
        parent = self.network.get_submodule(parent_name)
        layer = self.network.get_submodule(name)
        assert roles.is_layer(layer)
        weight = layer.weight
        bits = self.recipe.layer_bits(name, role)
        if bits.weight == FULL.weight:
            if bits.activation != FULL.activation:
                raise ValueError(
                    f"{name}: {bits} asks for a quantized input of a full-precision weight; expected {FULL}"
                )
            return

        layout = self.recipe.weight_granularity(role)

        def weights(part: Tensor) -> WeightQuantizer:
            try:
                return WeightQuantizer(part, Grid(bits.weight), layout, self._weight_search)
            except ValueError as error:
                raise ValueError(f"{name}.weight: {error}") from error

        def inputs(part: tuple[int, ...]) -> nn.Module:
            if bits.activation == FULL.activation:
                return nn.Identity()
            by_width = [self.recipe.layer_bits(name, role, width).activation for width in self.recipe.widths]
            try:
                return self._site(part, [self.recipe.activation_grid(each) for each in by_width])
            except ValueError as error:
                raise ValueError(f"{name}, its input: {error}") from error

        at = self._split_at(parent_name, role)
        if at is None:
            weight_quantizer, input_quantizer = weights(weight), inputs(shape)
        else:
            weight_quantizer = Split(weights(weight[:, :at]), weights(weight[:, at:]), at)
            rest = (shape[0] - at, *shape[1:])
            input_quantizer = Split(inputs((at, *shape[1:])), inputs(rest), at)
        parent.add_module(child, QuantizedLayer(layer, role, weight_quantizer, input_quantizer, self.switches))

    def _quantize_operands(self, processor: QuantizedAttention) -> None:
        probabilities = Grid(self.recipe.quantizer.softmax_bits, "positive")
        for operand, shape in processor.shapes.items():
            others = operand != "probabilities"
            grids = [self.recipe.activation_grid(width) if others else probabilities for width in self.recipe.widths]
            processor.add_module(operand, self._site(shape, grids))

    def _site(self, shape: tuple[int, ...], grids: Sequence[Grid]) -> nn.Module:
        """What quantizes activations of ``shape``: one quantizer, or one for each of the recipe's widths, even where
        they have the same bits, so that a width is calibrated and trained as if it were alone."""
        quantizer = self.recipe.quantizer

        def site(grid: Grid) -> ActivationQuantizer:
            name = "per_tensor" if grid.kind == "positive" else self.recipe.activation_granularity(grid.bits)
            layout = granularity.for_activation(name, len(shape) + 1)
            return ActivationQuantizer(shape, grid, layout, quantizer.activation_search, self.step)

        sites = [site(grid) for grid in grids]
        return sites[0] if len(sites) == 1 else Widths(sites, self.step)

    def _split_at(self, block_name: str, role: Role) -> int | None:
        """Channels of the first half of a decoder shortcut's input, or None where nothing is split."""
        if role is not Role.SHORTCUT or not self.recipe.quantizer.split_shortcuts or ".resnets." not in block_name:
            return None
        up_block_name, _, index = block_name.rpartition(".resnets.")
        if not up_block_name.startswith("up_blocks."):
            return None
        if int(index) > 0:
            before = self.network.get_submodule(f"{up_block_name}.resnets.{int(index) - 1}")
        else:
            number = int(up_block_name.removeprefix("up_blocks."))
            source = f"up_blocks.{number - 1}" if number else "mid_block"
            before = self.network.get_submodule(source).resnets[-1]  # type: ignore[index]
        assert isinstance(before, ResnetBlock2D)
        return before.out_channels


def _get(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name}: missing; the checkpoint was quantized with another recipe or from another model")
    return tensors[name]


def _assign(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    source = _get(tensors, name)
    if source.shape != target.shape:
        raise ValueError(f"{name}: found shape {tuple(source.shape)}, expected {tuple(target.shape)}")
    target.data.copy_(source)
