"""What the library knows of each kind of network: a file here is an architecture, found by the networks it registers.

Everything that depends on how a network is built is asked here: what its layers are for, which of them are learned
together, how it is called. A further architecture is a further file, with a subclass of `Architecture` that is
registered; nothing else changes.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from quest.config.reading import unknown
from quest.quantization.roles import Role, is_layer

if TYPE_CHECKING:
    from quest.quantization.attention import QuantizedAttention
    from quest.quantization.layers import Switches


class Inputs(NamedTuple):
    """What a noise predictor is told. x: (N, C, H, W); timesteps: (N,), the scheduler's.

    Of a conditional one, context: (N, L, d) tokens, or (N,) int64 classes; added: what else, by the names that the
    network's architecture has for it, each with N first.
    """

    x: Tensor
    timesteps: Tensor
    context: Tensor | None = None
    added: Mapping[str, Tensor] | None = None


class Places(NamedTuple):
    """Layers that papers treat apart, by name, or by a pattern (fnmatch) where blocks have copies. time_mlp: of the
    timestep's embedding, in the order of a call; first_block: the first convolution or linear layer of the first block
    behind the network's first layer."""

    time_mlp: tuple[str, ...]
    first_block: str


class Temporal(NamedTuple):
    """All that a network makes of the timestep alone. module: computes it, on the network's own layers; entry: the
    module of the network that is called with the same arguments; layers: their names."""

    module: nn.Module
    entry: nn.Module
    layers: tuple[str, ...]


class Architecture(ABC):
    """What is asked of one network, whether its layers are quantized or not. A subclass is registered (`register`).

    networks: the classes of networks that it explains. blocks: modules whose layers are reconstructed together.
    token_blocks: modules whose output is a token sequence (N, tokens, C) or an image of them (N, C, H, W).
    """

    networks: ClassVar[tuple[type[nn.Module], ...]]
    blocks: ClassVar[tuple[type[nn.Module], ...]]
    token_blocks: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, network: Any):
        self.network = network

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""

    @property
    @abstractmethod
    def conditional(self) -> bool:
        """Whether a call takes a context."""

    @abstractmethod
    def own_roles(self) -> dict[str, Role]:
        """Roles by name of the layers that the architecture explains; names without a layer do no harm."""

    @abstractmethod
    def attentions(self) -> dict[str, nn.Module]:
        """Modules that compute two matrix products, by name."""

    @abstractmethod
    def quantize_products(self, name: str, switches: Switches) -> QuantizedAttention:
        """Have an attention compute its products by a QuantizedAttention, a submodule of it, which is returned."""

    @abstractmethod
    def places(self) -> Places:
        """Layers that papers treat apart."""

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        """What the network is called with."""
        return (inputs.x, inputs.timesteps) if inputs.context is None else (inputs.x, inputs.timesteps, inputs.context)

    @classmethod
    def timestep(cls, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """The timestep, as the scheduler has it, in the arguments of a call: a number, or a tensor of equal ones."""
        return named["timestep"] if "timestep" in named else args[1]

    def blank(self) -> Inputs:
        """What one sample's call is told where there is nothing to say: zeros of the right shapes, on the network's
        device."""
        device = next(self.network.parameters()).device
        return Inputs(torch.zeros(1, *self.shape, device=device), torch.zeros(1, dtype=torch.long, device=device))

    def prediction(self, output: Any) -> Tensor:
        """The predicted noise (N, C, H, W) in what a call returns."""
        return output.sample

    def heads(self) -> dict[str, int]:
        """Heads of each attention, by name."""
        return {}

    def set_heads(self, name: str, heads: int) -> None:
        """Split the channels of an attention into ``heads``, whatever the network's config says."""
        raise ValueError(f"{type(self.network).__name__}: the heads of {name} follow from its config")

    def with_one_output(self, block: nn.Module) -> nn.Module:
        """A block, or a layer outside any, as a module whose output is one tensor; itself unless it gives several."""
        return block

    def split_at(self, layer: str) -> int | None:
        """Channels of the first half of a shortcut's input, where that is a concatenation; else None."""
        return None

    def temporal(self) -> Temporal:
        """All that the network makes of the timestep alone. Raises ValueError where that is no part of its own."""
        raise ValueError(
            f"{type(self.network).__name__} has no layers that depend on the timestep alone; start from a "
            "reconstruction of another grouping"
        )

    def roles(self, given: Mapping[str, Role] | None = None) -> dict[str, Role]:
        """Name to role of every convolution and linear layer, in registration order; asked before it is quantized.

        given: roles by patterns of names (fnmatch), which win; of several that match, the longest. Raises ValueError
        naming the layers whose role is unknown, for none is skipped silently, or the pattern that matches no layer.
        """
        given, own = given or {}, self.own_roles()
        found: dict[str, Role] = {}
        strange: dict[str, nn.Module] = {}
        unused = set(given)
        for name, module in self.network.named_modules():
            if not is_layer(module):
                continue
            matching = [pattern for pattern in given if fnmatch(name, pattern)]
            unused -= set(matching)
            role = given[max(matching, key=len)] if matching else own.get(name)
            if role is None:
                strange[name] = module
            else:
                found[name] = role
        if strange:
            listed = ", ".join(f"{name} ({type(module).__name__})" for name, module in strange.items())
            raise ValueError(
                f"layers of unknown role in {type(self.network).__name__}: {listed}; give each a role by a "
                f"pattern of its name (quantizer.roles), one of {', '.join(Role)}; to begin with: {proposal(strange)}"
            )
        if unused:
            raise ValueError(
                f"quantizer.roles: {min(unused)}: no layer of {type(self.network).__name__} is called like that; "
                f"its layers are {', '.join(found)}"
            )
        return found

    def example(self, context: Tensor | None = None) -> tuple[Any, ...]:
        """Arguments of one call with a batch of 1, on the network's device; context (1, …), a blank one without."""
        told = self.blank()
        return self.arguments(told if context is None else told._replace(context=context))


_REGISTERED: dict[str, type[Architecture]] = {}  # by the name of the network's class

Kind = TypeVar("Kind", bound=type[Architecture])


def register(kind: Kind) -> Kind:
    """Class decorator: this architecture explains its ``networks``."""
    _REGISTERED.update({network.__name__: kind for network in kind.networks})
    return kind


def of(network: nn.Module) -> Architecture:
    """The architecture of a network, quantized or not. Raises ValueError for a network that none explains."""
    if isinstance(known := getattr(network, "architecture", None), Architecture):
        return known
    for ancestor in type(network).__mro__:
        kind = _registered().get(ancestor.__name__)
        if kind is not None and ancestor in kind.networks:
            return kind(network)
    raise ValueError(unexplained(type(network).__name__))


def build(name: str, config: Mapping[str, Any], heads: Mapping[str, int] | None = None) -> Any:
    """An untrained network from the name of its class and its diffusers config, with ``heads`` by attention.

    Raises ValueError for a class that no architecture explains.
    """
    if (kind := _registered().get(name)) is None:
        raise ValueError(unexplained(name))
    network = networks()[name].from_config(config)
    for attention, count in (heads or {}).items():
        kind(network).set_heads(attention, count)
    return network


# What a layer is for, guessed from its own name: the first of these that is in it says.
_GUESSES = {
    **dict.fromkeys(("query", "to_q", "q_proj", "q_linear"), Role.ATTENTION_Q),
    **dict.fromkeys(("key", "to_k", "k_proj", "k_linear"), Role.ATTENTION_K),
    **dict.fromkeys(("value", "to_v", "v_proj", "v_linear"), Role.ATTENTION_V),
    **dict.fromkeys(("to_out", "to_add_out", "out_proj"), Role.ATTENTION_OUT),
    **dict.fromkeys(("time", "temb", "adaln", "modulation"), Role.TIME_PROJECTION),
    **dict.fromkeys(("text", "caption", "context", "class", "label", "cond"), Role.CONDITION),
    **dict.fromkeys(("mlp", "ff", "fc", "feed"), Role.FEED_FORWARD),
}


def proposal(strange: Mapping[str, nn.Module]) -> str:
    """Patterns for layers without a role, and a guess at their roles, as JSON: what ``quantizer.roles`` takes.

    Layers that differ in the numbers of their names share a pattern.
    """
    roles = {}
    for name, module in strange.items():
        plain = Role.PROJECTION if isinstance(module, nn.Linear) else Role.CONVOLUTION
        guess = next((role for part, role in _GUESSES.items() if part in name.lower()), plain)
        roles.setdefault(".".join("*" if part.isdecimal() else part for part in name.split(".")), guess)
    return json.dumps(roles)


def networks() -> dict[str, Any]:
    """The classes of all networks that an architecture explains, by name."""
    return {network.__name__: network for kind in _registered().values() for network in kind.networks}


def predict(network: nn.Module, inputs: Inputs) -> Tensor:
    """The noise that ``network``, quantized or not, predicts, (N, C, H, W)."""
    architecture = of(network)
    return architecture.prediction(network(*architecture.arguments(inputs)))


def _registered() -> dict[str, type[Architecture]]:
    _read_folder()
    return _REGISTERED


@cache
def _read_folder() -> None:
    """Import the files here, which register themselves; only once it is needed, for it takes a while."""
    for file in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{file.name}")


def unexplained(name: str) -> str:
    """What is wrong with a network of this class, which no architecture explains, and what to do."""
    return (
        f"architecture: {unknown(name, _REGISTERED)}; to quantize another kind of network, describe it in a file of "
        "quest/architectures"
    )
