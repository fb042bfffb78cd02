"""How large a dataset's networks are: operations of a call, parameters, units, and what a sample takes in caches.

Where the model is not here it is built as its protocol says, without weights on the meta device: sizes and speed do
not depend on them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quest import architectures
from quest.architectures import Inputs
from quest.architectures.order import in_call_order, outermost
from quest.bench import testkit
from quest.config.dataset import DatasetSettings
from quest.config.pretraining import PretrainSettings
from quest.config.values import ConfigError
from quest.diffusion import denoiser as denoisers
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.samplers import Sampler
from quest.embedded.training.autoencoder import build as build_autoencoder
from quest.embedded.training.denoiser import build_transformer, build_unet
from quest.learning import recording
from quest.learning.calibration import Calibration
from quest.quantization.policy import EVERYTHING, Policy
from quest.quantization.roles import is_layer
from quest.sources import compvis

INCEPTION_FLOPS = 2 * 5.7e9
"""Of an image in the papers' feature extractor: Inception v3 at 299×299 has 5.7 G multiply-accumulates."""
_TEXT_TOKENS = 77  # of Stable Diffusion's encoder
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Model:
    """network: the noise predictor. decoder: the first stage of a latent model. context: tokens and channels of what a
    conditional network is told, () where that is the number of a class. Either network may be on the meta device.
    policy: which layers are timed at other bits than all others."""

    network: Any
    decoder: Any = None
    context: tuple[int, int] | tuple[()] | None = None
    policy: Policy = EVERYTHING

    def inputs(self, batch: int, device: torch.device | str) -> Inputs:
        """Noise at timestep 500, under random conditions, of ``batch`` samples."""
        shape = architectures.of(self.network).shape
        context = None
        if self.context is not None:
            shape_of_all = batch, *self.context
            classes = torch.zeros(shape_of_all, dtype=torch.long, device=device)
            context = torch.randn(shape_of_all, device=device) if self.context else classes
        timesteps = torch.full((batch,), 500, device=device)
        return Inputs(torch.randn(batch, *shape, device=device), timesteps, context)

    def recorded(self, told: Inputs, sampler: Sampler) -> Calibration:
        """Calibration data of one step that has ``told``."""
        return Calibration(told.x.unsqueeze(0), [0], sampler, told.context)


@dataclass(frozen=True)
class Size:
    """flops: of one sample in a call, decode_flops: of the first stage. parameters: of the network, all_parameters:
    with the first stage; weights: of layers that are quantized, scales: their output channels.
    units: that learned rounding takes one after another. cache_bytes: inputs and targets of the largest, of a sample;
    kept_bytes: the most outputs of units that later ones need, of a sample;
    output_bytes: of all layers of a role, of a sample. shape: (C, H, W) of what is denoised. context_bytes: of a
    sample.
    """

    flops: float
    decode_flops: float
    parameters: int
    all_parameters: int
    weights: int
    scales: int
    units: int
    cache_bytes: int
    kept_bytes: int
    output_bytes: dict[str, int]
    shape: tuple[int, int, int]
    context_bytes: int

    @property
    def sample_bytes(self) -> int:
        """Of what is denoised."""
        return math.prod(self.shape) * _FLOAT


def model(dataset: str, settings: DatasetSettings) -> Model:
    """The dataset's model, with its weights where they are here. Raises ConfigError where nothing says how it is
    built."""
    if settings.model.is_file():
        return of(denoisers.load(settings.model))
    if settings.pretrain is not None:
        return _embedded(settings, settings.pretrain)
    with torch.device("meta"):
        if settings.architecture is not None:
            described = compvis.read_architecture(settings.architecture)
            width = described.unet_config.context_dim
            return Model(
                compvis.build_unet(described),
                compvis.build_autoencoder(described),
                None if width is None else (1, width),
            )
        if dataset == "cifar10":
            return Model(testkit.cifar10_unet())
        if dataset == "stable-diffusion":
            network: Any = testkit.stable_diffusion_unet()
            context = _TEXT_TOKENS, network.config.cross_attention_dim
            return Model(network, testkit.stable_diffusion_autoencoder(), context)
    raise ConfigError(
        f"{dataset}: {settings.model} is not here, and its protocol does not say how its network is built; import it "
        f"first (`snakemake -- {settings.model}`)"
    )


@torch.no_grad()
def of(denoiser: Denoiser) -> Model:
    """The networks of a model, which are shared, not copied."""
    context = None if denoiser.conditioner is None else tuple(denoiser.conditioner([None]).shape[1:])
    return Model(denoiser.network, denoiser.first_stage and denoiser.first_stage.network, context)  # type: ignore[arg-type]


def _embedded(settings: DatasetSettings, pretrain: PretrainSettings) -> Model:
    decoder, channels, size = None, settings.image_channels, settings.image_size
    if pretrain.first_stage is not None:
        if not pretrain.first_stage.is_file():
            raise ConfigError(
                f"pretrain.first_stage: {pretrain.first_stage} is not here; `dvc pull {pretrain.first_stage.parent}` "
                "fetches it"
            )
        shared = denoisers.load(pretrain.first_stage)
        decoder, (channels, size, _) = shared.first_stage and shared.first_stage.network, shared.shape
    with torch.device("meta"):
        if (stage := pretrain.autoencoder) is not None:
            decoder, channels = build_autoencoder(stage, settings.image_channels), stage.latent_channels
            size = settings.image_size // 2 ** (len(stage.channels) - 1)
        if pretrain.transformer is not None:
            classes = (settings.condition and settings.condition.classes) or 0
            return Model(build_transformer(pretrain.transformer, channels, size, classes), decoder, ())
        assert pretrain.unet is not None  # the settings have one of both
        context = None
        if settings.condition is not None:
            clip = pretrain.clip if settings.condition.prompts is not None else None
            context = (1, pretrain.unet.channels[-1]) if clip is None else (clip.tokens, clip.width)
        return Model(build_unet(pretrain.unet, channels, size, context and context[1]), decoder, context)


@torch.no_grad()
def size(model: Model) -> Size:
    """The sizes of a model, from one call of a copy of it without weights."""
    network = copy.deepcopy(model.network).to("meta").eval()
    empty = replace(model, network=network, decoder=None)
    architecture = architectures.of(network)
    roles = architecture.roles()
    layers = {name: network.get_submodule(name) for name in roles}
    units = outermost(network, (*architecture.blocks, *{type(layer) for layer in layers.values()}))
    units = {name: unit for name, unit in units.items() if any(map(is_layer, unit.modules()))}
    of_unit, of_layer = _watched(units, inputs=True), _watched(layers, inputs=False)
    with of_unit as caches, of_layer as outputs, sdpa_kernel(SDPBackend.MATH):
        flops = _flops(lambda: architectures.predict(network, empty.inputs(1, "meta")))
    arguments = tuple(architecture.arguments(empty.inputs(1, "meta")))
    order = in_call_order(network, arguments, units)

    def call() -> object:
        return network(*arguments)

    by_role: dict[str, int] = {}
    for name, role in roles.items():
        by_role[role] = by_role.get(role, 0) + outputs.get(name, 0)
    decode_flops, all_parameters = 0.0, _parameters(network)
    if model.decoder is not None:
        decoder = copy.deepcopy(model.decoder).to("meta").eval()
        all_parameters += _parameters(decoder)
        latents = torch.randn(1, *architecture.shape, device="meta")
        # A VQ model's codebook is looked up, which is no product, and cannot be on the meta device.
        named = {"force_not_quantize": True} if hasattr(decoder, "quantize") else {}
        decode_flops = _flops(lambda: decoder.decode(latents, return_dict=False, **named))
    return Size(
        flops=flops,
        decode_flops=decode_flops,
        parameters=_parameters(network),
        all_parameters=all_parameters,
        weights=sum(layer.weight.numel() for layer in layers.values()),
        scales=sum(layer.weight.shape[0] for layer in layers.values()),
        units=len(units),
        cache_bytes=max(caches.values()),
        kept_bytes=recording.Needs(call, [units[name] for name in order]).bytes,
        output_bytes=by_role,
        shape=architecture.shape,
        context_bytes=0 if model.context is None else math.prod(model.context) * _FLOAT,
    )


def materialized(model: Model, device: torch.device) -> Model:
    """The same on ``device``; random weights where it has none, which keep the size of what passes through."""
    decoder = None if model.decoder is None else _on(model.decoder, device)
    return replace(model, network=_on(model.network, device), decoder=decoder)


def _on(network: nn.Module, device: torch.device) -> nn.Module:
    network = network.eval().requires_grad_(False)
    if next(network.parameters()).device.type != "meta":
        return network.to(device)
    network = network.to_empty(device=device)
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(std=(parameter.numel() / parameter.shape[0]) ** -0.5)
    for buffer in network.buffers():  # like a transformer's table of positions
        buffer.zero_()
    return network


class _watched:
    """Within, bytes of what modules give, and of what they are called with, by name; of one sample."""

    def __init__(self, modules: dict[str, nn.Module], inputs: bool):
        self._modules, self._inputs = modules, inputs
        self._bytes: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        self._handles = [
            module.register_forward_hook(self._noting(name), with_kwargs=True) for name, module in self._modules.items()
        ]
        return self._bytes

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _noting(self, name: str) -> Any:
        def note(_module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
            values = [output, *(args if self._inputs else ()), *(named.values() if self._inputs else ())]
            self._bytes[name] = sum(value.nbytes for value in values if isinstance(value, Tensor))

        return note


def _flops(call: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
