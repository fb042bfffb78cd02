"""What a method starts from: the network on its grids, its weights rounded as was learned where the method says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from quest import architectures, methods
from quest.config.method import PAPER
from quest.config.quantization import QuantizationSettings
from quest.config.values import Bits
from quest.diffusion.denoiser import Denoiser
from quest.learning import reconstruction
from quest.quantization.network import QuantizedNetwork
from quest.quantization.policy import EVERYTHING, NAMED, Policy
from quest.quantization.recipe import Recipe


def recipe(
    settings: QuantizationSettings, bits: Bits, sets: int = 1, policy: Policy = EVERYTHING, lower: tuple[int, ...] = ()
) -> Recipe:
    """The recipe of a dataset at a bit-width, with ``sets`` groups of sampling steps."""
    return Recipe(bits, settings.quantizer, sets, settings.sampler.steps, policy, lower)


def recipe_of(settings: QuantizationSettings, denoiser: Denoiser, method: str, bits: Bits) -> Recipe:
    """The recipe of a method's cell at a bit-width."""
    module, own = methods.get(method), settings.method(method)
    policy = policy_of(methods.policy_name(method, own), denoiser, bits)
    lower = module.lower_bits(own, bits.activation) if hasattr(module, "lower_bits") else ()
    found = recipe(settings, bits, own.sets, policy, lower)
    return replace(found, quantizer=module.quantizer(own, found.quantizer)) if hasattr(module, "quantizer") else found


def policy_of(name: str, denoiser: Denoiser, bits: Bits) -> Policy:
    """A policy by its name (`quest.config.method.Rounding`), for a run of these bits."""
    if name in NAMED:
        return NAMED[name]
    method = methods.get(name.removesuffix(f"-{PAPER}"))
    return method.paper_policy(bits, architectures.of(denoiser.network).places())


def rounding_network(
    settings: QuantizationSettings, denoiser: Denoiser, weight_bits: int, policy: str
) -> QuantizedNetwork:
    """The network whose weights' rounding is learned, for all cells of these weight bits and a policy by its name; made
    of ``denoiser``'s, which is taken over. Its activations stay in full precision meanwhile."""
    bits = Bits(weight_bits, 8)
    whole = recipe(settings, bits, policy=policy_of(policy, denoiser, bits))
    return QuantizedNetwork(denoiser.network, whole, denoiser.example())


def network(
    settings: QuantizationSettings, denoiser: Denoiser, method: str, bits: Bits, reconstruction_file: Path | None
) -> tuple[QuantizedNetwork, dict[str, str]]:
    """The network that a method starts from, weights on their grids, made of ``denoiser``'s, which is taken over;
    and the sha256 of the reconstruction that it has them from, by the name "reconstruction". Raises ValueError."""
    quantized = QuantizedNetwork(denoiser.network, recipe_of(settings, denoiser, method, bits), denoiser.example())
    rounding = methods.starts_from(method, settings.method(method))
    if rounding is None:
        return quantized, {}
    if reconstruction_file is None:
        raise ValueError(f"{method} starts from reconstructed weights; give them with --reconstruction")
    return quantized, {"reconstruction": reconstruction.apply(reconstruction_file, quantized, denoiser, rounding)}
