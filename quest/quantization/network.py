"""The quantized network: a network whose layers and attention products compute on grids, as a recipe says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quest import architectures
from quest.architectures.order import outermost
from quest.quantization import granularity, packing
from quest.quantization.account import account, assert_levels
from quest.quantization.attention import QuantizedAttention
from quest.quantization.grid import Grid, Search
from quest.quantization.layers import QuantizedLayer, Switches
from quest.quantization.policy import FULL
from quest.quantization.quantizers import ActivationQuantizer, Split, WeightQuantizer, Widths
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role, is_layer
from quest.quantization.steps import Step


class QuantizedNetwork(nn.Module):
    """A network on grids. Called like the network it was made from, after `set_step`.

    network: taken over and changed in place. recipe: the grids. example: arguments of one call with a batch of 1, from
    which the shapes of all activations are read. search: whether to search weight scales; a checkpoint brings its own.
    Raises ValueError for a network of unknown architecture, or with layers whose role neither that nor the recipe says.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, example: tuple[Any, ...], search: bool = True):
        super().__init__()
        self.recipe = recipe
        self._weight_search: Search = recipe.quantizer.weight_search if search else "max"
        self.network = network.eval().requires_grad_(False)
        self.architecture = architectures.of(network)
        self.step = Step(recipe.sets, recipe.steps)
        self.switches = Switches()
        self.example = example
        roles = self.architecture.roles(dict(recipe.roles))
        products = [self.architecture.quantize_products(name, self.switches) for name in self.architecture.attentions()]
        shapes = self._input_shapes(roles)
        for each in products if recipe.policy.attention else []:
            self._quantize_operands(each)
        for name, role in roles.items():
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
        self.step.use([known.index(each) for each in bits])

    def used(self) -> list[int]:
        """The activation bit-width of each sampling step, noisiest first."""
        return [self.recipe.widths[width] for width in self.step.widths.tolist()]

    @property
    def mode(self) -> tuple[bool, bool, int]:
        """What else than its inputs and its set of scales a call depends on: what is quantized, to which width."""
        return self.switches.weights, self.switches.activations, self.step.width

    def layers(self) -> dict[str, QuantizedLayer]:
        """Quantized layers by name, in registration order."""
        return {name: module for name, module in self.network.named_modules() if isinstance(module, QuantizedLayer)}

    def blocks(self) -> dict[str, nn.Module]:
        """What is learned, or computed again, as a whole, by name: blocks of the architecture, layers outside any."""
        return outermost(self.network, (*self.architecture.blocks, QuantizedLayer))

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

    def as_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Contexts within which a call computes as it would at this one: at the same sampling steps, the same
        quantized, whatever was said since. For what a backward pass computes again."""
        step = self.step.as_now()
        weights, activations = self.switches.weights, self.switches.activations

        @contextmanager
        def within() -> Iterator[None]:
            with step(), self.quantizing(weights=weights, activations=activations):
                yield

        return within

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
            used = self.used()
            for width, steps in Counter(used).items():
                self.set_step(used.index(width))
                call = account(self.network, self.example)
                for key in ("gbops", "mean_activation_bits"):
                    call[key] = found.get(key, 0.0) + call[key] * steps / self.step.steps
                found = call
        quantizer, widths = self.recipe.quantizer, sorted(set(used), reverse=True)
        return found | {
            "weight_granularity": "per_channel"
            if quantizer.weight_group is None
            else f"groups_of_{quantizer.weight_group}",
            "activation_granularity": " and ".join(
                dict.fromkeys(self.recipe.activation_granularity(bits) for bits in widths)
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
        assert is_layer(layer)
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

        split = role is Role.SHORTCUT and self.recipe.quantizer.split_shortcuts
        at = self.architecture.split_at(name) if split else None
        if at is None:
            weight_quantizer, input_quantizer = weights(weight), inputs(shape)
        else:
            weight_quantizer = Split(weights(weight[:, :at]), weights(weight[:, at:]), at)
            rest = (shape[0] - at, *shape[1:])
            input_quantizer = Split(inputs((at, *shape[1:])), inputs(rest), at)
        parent.add_module(child, QuantizedLayer(layer, role, weight_quantizer, input_quantizer, self.switches))

    def _quantize_operands(self, products: QuantizedAttention) -> None:
        probabilities = Grid(self.recipe.quantizer.softmax_bits, "positive")
        for operand, shape in products.shapes.items():
            others = operand != "probabilities"
            grids = [self.recipe.activation_grid(width) if others else probabilities for width in self.recipe.widths]
            products.add_module(operand, self._site(shape, grids, operand=True))

    def _site(self, shape: tuple[int, ...], grids: Sequence[Grid], *, operand: bool = False) -> nn.Module:
        """What quantizes activations of ``shape``: one quantizer, or one for each of the recipe's widths, even where
        they have the same bits, so that a width is calibrated and trained as if it were alone.

        operand: of an attention product, instead of a layer's input.
        """
        quantizer = self.recipe.quantizer

        def site(grid: Grid) -> ActivationQuantizer:
            name = "per_tensor" if grid.kind == "positive" else self.recipe.activation_granularity(grid.bits)
            if name == "offsets" and operand:
                name = "per_tensor"  # two operands that are both shifted do not part into a sum and a constant
            if name in ("offsets", "multiples") and grid.kind != "asymmetric":
                name = "per_tensor"
            layout = granularity.for_activation(name, len(shape) + 1)
            return ActivationQuantizer(shape, grid, layout, quantizer.activation_search, self.step)

        sites = [site(grid) for grid in grids]
        return sites[0] if len(sites) == 1 else Widths(sites, self.step)
