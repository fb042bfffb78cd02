"""Weight bits of each layer under a wish: the least error in so many bytes, or the fewest bytes for a closeness.

How much each layer matters is measured (`quest.learning.sensitivity`), and bits are given where a byte takes most error
off (`quest.quantization.allocation`). A size is that of the file of packed weights, scales and all, as a share of what
the same network takes in float16. A closeness is the PSNR of images of held-out seeds, drawn with weights rounded to
nearest, which are neither those that the model is calibrated on nor those of its card.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from quest import architectures
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits, ConfigError
from quest.deploy import start
from quest.deploy.packed import assembly, seal
from quest.deploy.packed.description import LayerDescription, is_dense
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditions import EVALUATION, conditions
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.sampling import sample
from quest.learning import sensitivity
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.learning.progress import NOT_KEPT, Progress
from quest.metrics import distances
from quest.metrics.measure import squared_errors
from quest.noise import HELD_OUT
from quest.quantization import allocation, mixed
from quest.quantization.allocation import WIDTHS, Choice, Option
from quest.quantization.network import QuantizedNetwork
from quest.quantization.recipe import Recipe
from quest.quantization.roles import Role

log = logging.getLogger(__name__)

_STEP = 0.01  # of all codes' bytes, between two choices whose images are drawn
_DRAWS = 10  # choices whose images are drawn, with what their calibration takes; about log2(1 / _STEP)
_CORRECTION = 1_024  # bytes that a sampler's correction may take beside 4 for each step and channel


class Wish(NamedTuple):
    """size: bytes of the packed network, as a share of those in float16. psnr: dB to full precision. One of them."""

    size: float | None = None
    psnr: float | None = None

    def __str__(self) -> str:
        return f"--size {self.size:g}" if self.psnr is None else f"--psnr {self.psnr:g}"


def wish(size: float | None, psnr: float | None) -> Wish | None:
    """What is asked for, None for uniform bits. Raises ConfigError for what nobody can have."""
    for name, given in {"--size": size, "--psnr": psnr}.items():
        if given is not None and not (given > 0 and math.isfinite(given)):
            raise ConfigError(f"{name}: found {given:g}; expected more than 0")
    if size is not None and psnr is not None:
        raise ConfigError("--size and --psnr: both given; expected one, which the other follows from")
    return None if size is None and psnr is None else Wish(size, psnr)


@dataclass(frozen=True)
class Candidates:
    """The layers whose weight bits may be chosen.

    recipe: with all of them at the most bits. roles: of every layer of the network. shapes: of the candidates' weights.
    fixed: bytes of the packed file that are no candidate's codes. half: bytes of the network in float16.
    """

    recipe: Recipe
    roles: Mapping[str, Role]
    shapes: Mapping[str, tuple[int, ...]]
    fixed: int
    half: int

    @property
    def widths(self) -> list[int]:
        """Weight bits that a layer may have."""
        most = self.recipe.bits.weight
        return sorted({most, *(bits for bits in WIDTHS if bits < most)})

    def bytes(self, name: str, bits: int) -> int:
        """Of the codes of a layer."""
        return LayerDescription(bits=bits, shape=tuple(self.shapes[name]), dense=is_dense(bits)).packed_bytes

    def size(self, choice: Choice) -> int:
        """Bytes of the packed file."""
        return self.fixed + sum(self.bytes(name, bits) for name, bits in choice.items())

    def evenly(self, bits: int) -> Choice:
        """All of them at the same bits."""
        return dict.fromkeys(self.shapes, bits)

    def options(self, sensitivities: Mapping[str, Mapping[int, float]]) -> dict[str, list[Option]]:
        """What each layer may have, with what that takes and costs."""
        return {
            name: [Option(bits, self.bytes(name, bits), error) for bits, error in sensitivities[name].items()]
            for name in self.shapes
        }

    def of(self, choice: Choice) -> Recipe:
        """The recipe of a choice."""
        return mixed.recipe(self.recipe, self.roles, choice)


def candidates(model: Denoiser, settings: DatasetSettings, method: str, bits: Bits) -> Candidates:
    """The candidates of a model, which stays as it is; those that the method's policy gives bits of their own are none.

    bits: of weights, the most that a layer may have, and of activations. Raises ConfigError where nothing is left to
    choose, or steps choose their activation bits.
    """
    model = model.copy("cpu")
    recipe = start.recipe_of(settings, model, method, bits)
    if recipe.lower:
        raise ConfigError("methods.ptqd.step_bits: cannot be together with --size or --psnr; leave one of them out")
    roles = architectures.of(model.network).roles(dict(recipe.roles))
    half = 2 * sum(parameter.numel() for parameter in model.network.parameters())
    network = QuantizedNetwork(model.network, recipe, model.example(), search=False)
    shapes = {
        name: tuple(layer.weight.shape)
        for name, layer in network.layers().items()
        if not recipe.policy.excepts(name, layer.role)
    }
    if not shapes or bits.weight == min(WIDTHS):
        raise ConfigError(f"--bits: {bits} leaves no layer a choice; expected weight bits above {min(WIDTHS)}")
    for site in network.sites().values():
        site.calibrated.fill_(True)  # of which the sizes are asked alone
    sampler = model.sampler(settings.sampler)
    _, tensors = assembly.take_apart(network, sampler.timesteps.tolist(), None)
    whole = len(save(tensors, metadata={"format": "pt", seal.KEY: "0" * 64}))
    whole += _CORRECTION + 4 * settings.sampler.steps * (1 + model.shape[0])
    all_most = Candidates(recipe, roles, shapes, 0, half)
    return Candidates(recipe, roles, shapes, whole - all_most.size(all_most.evenly(bits.weight)), half)


def check(wish: Wish, found: Candidates) -> None:
    """Raises ConfigError, saying what is possible, for a size below the least."""
    if wish.size is None:
        return
    least = min(found.widths)
    least_size = found.size(found.evenly(least))
    if wish.size * found.half < least_size:
        raise ConfigError(
            f"--size: {wish.size:g} of the {found.half / 2**20:.2f} MiB that the network takes in float16; the least "
            f"possible is {math.ceil(least_size / found.half * 1e3) / 1e3:g}, with every layer at {least} bits"
        )


def samples(wish: Wish, found: Candidates, settings: DatasetSettings) -> int:
    """About how many samples go through the network while bits are chosen."""
    steps = settings.sampler.steps
    measuring = sensitivity.calls_of(len(found.shapes), steps)
    return measuring if wish.psnr is None else measuring + _DRAWS * settings.evaluation.images * steps


@dataclass(frozen=True)
class Chosen:
    """bits: of each candidate. rows: each candidate's part in it, as plain JSON. bytes: of the packed file. psnr: of
    images of held-out seeds, where a closeness was asked for."""

    bits: Choice
    rows: list[dict[str, Any]]
    bytes: int
    share: float
    psnr: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON; inverse of the constructor."""
        return dict(vars(self))


def choose(
    wish: Wish,
    found: Candidates,
    model: Path,
    settings: DatasetSettings,
    calibration: Calibration,
    seed: int,
    device: torch.device,
    progress: Progress = NOT_KEPT,
) -> Chosen:
    """The bits of each layer for a wish. Raises ConfigError, saying what is possible, where it cannot be had.

    calibration: of the full-precision model in ``model``, on the device.
    """
    errors = measured(found, model, calibration, seed, device, progress)
    options = found.options(errors)
    psnr = None
    if wish.size is not None:
        coarsest = allocation.coarsest(options)
        bits = allocation.fitting(options, int(wish.size * found.half) - found.size(coarsest))
    else:
        assert wish.psnr is not None
        drawn = closeness(found, model, settings, calibration, seed, device)
        bits, psnr = _closest(wish.psnr, found, list(allocation.ways(options)), _kept(drawn, progress))
    rows = [
        {
            "layer": name,
            "role": str(found.roles[name]),
            "weights": math.prod(shape),
            "bits": bits[name],
            "sensitivity": errors[name][bits[name]],
            "bytes": found.bytes(name, bits[name]),
        }
        for name, shape in found.shapes.items()
    ]
    size = found.size(bits)
    return Chosen(bits, rows, size, size / found.half, psnr)


def measured(
    found: Candidates,
    model: Path,
    calibration: Calibration,
    seed: int,
    device: torch.device,
    progress: Progress = NOT_KEPT,
) -> dict[str, dict[int, float]]:
    """The sensitivity of each candidate at each of the widths."""
    denoiser = denoisers.load(model, device)
    network = QuantizedNetwork(denoiser.network, found.recipe, denoiser.example(), search=False)
    sampler = denoiser.sampler(sensitivity.few_steps(calibration.sampler))
    return sensitivity.sensitivities(network, sampler, calibration, list(found.shapes), found.widths, seed, progress)


def closeness(
    found: Candidates,
    model: Path,
    settings: DatasetSettings,
    calibration: Calibration,
    seed: int,
    device: torch.device,
) -> Callable[[Choice], float]:
    """PSNR in dB of a choice rounded to nearest, over `evaluation.images` images of held-out seeds."""
    indices, held_out = range(settings.evaluation.images), seed + HELD_OUT
    wanted = conditions(settings.condition, EVALUATION, held_out, indices)

    def draw(around: Denoiser, network: torch.nn.Module) -> torch.Tensor:
        size = settings.evaluation.batch_size
        return sample(around, network, settings.sampler, held_out, indices, wanted, size, device)

    around = denoisers.load(model, device)
    full = draw(around, around.network)

    def of(choice: Choice) -> float:
        denoiser = denoisers.load(model, device)
        network = QuantizedNetwork(denoiser.network, found.of(choice), denoiser.example())
        calibrate_activations(network, calibration)
        with network.frozen():
            each = squared_errors(draw(denoiser, network), full)
        psnr = distances.psnr(sum(each) / len(each))
        return math.inf if psnr is None else psnr

    return of


def _kept(drawn: Callable[[Choice], float], progress: Progress) -> Callable[[Choice], float]:
    """The same, what is known after a kill not drawn again."""
    known: list[Any] = progress.get("drawn") or []

    def of(choice: Choice) -> float:
        for before, psnr in known:
            if before == choice:
                return psnr
        known.append([choice, psnr := drawn(choice)])
        progress.put("drawn", known)
        return psnr

    return of


def _closest(
    wanted: float, found: Candidates, choices: Sequence[Choice], drawn: Callable[[Choice], float]
) -> tuple[Choice, float]:
    """The smallest of ``choices``, from coarse to fine, whose images are as close as wanted, and how close they are.

    Between two that were drawn and are a hundredth of the bytes apart, nothing is drawn."""
    most = found.recipe.bits.weight
    finest = found.evenly(most)
    if (psnr := drawn(finest)) < wanted:
        raise ConfigError(
            f"--psnr: {wanted:g} dB; with every layer at {most} bits, rounded to nearest, images of held-out seeds "
            f"come to {math.floor(psnr * 10) / 10:g} dB: ask for at most that, or for more activation bits than "
            f"{found.recipe.bits.activation}"
        )
    apart = _STEP * (found.size(finest) - found.fixed)
    ways = [choices[0]]
    for choice in choices[1:]:
        if found.size(choice) - found.size(ways[-1]) >= apart:
            ways.append(choice)
    best, below, above = (finest, psnr), -1, len(ways)
    while above - below > 1:
        middle = (below + above) // 2
        psnr = drawn(ways[middle])
        log.info("%.1f %% of float16: %.2f dB", 100 * found.size(ways[middle]) / found.half, psnr)
        if psnr >= wanted:
            best, above = (ways[middle], psnr), middle
        else:
            below = middle
    return best


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The choice as a table, its header first; layers in the order of the network."""
    header = ["layer", "weights", "bits", "sensitivity", "KiB"]
    return [header] + [
        [
            row["layer"],
            f"{row['weights']:,}",
            str(row["bits"]),
            f"{row['sensitivity']:.2e}",
            f"{row['bytes'] / 1024:.1f}",
        ]
        for row in rows
    ]


def text(chosen: Chosen, wish: Wish) -> str:
    """The choice for a terminal."""
    rows = table(chosen.rows)
    widest = max(len(row[0]) for row in rows)
    lines = [
        f"{name:{widest}} {weights:>11} {bits:>4} {error:>11} {size:>9}" for name, weights, bits, error, size in rows
    ]
    said = f"{wish}: {chosen.bytes / 2**20:.2f} MiB, {chosen.share:.1%} of float16"
    if chosen.psnr is not None:
        said += f"; {chosen.psnr:.2f} dB on held-out seeds, rounded to nearest"
    return "\n".join([*lines, said])
