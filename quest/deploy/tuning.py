"""Choose a method's settings by the noise that it predicts on calibration data it has not seen, never by images.

Each trial is a whole finetuning of one cell. Its loss is the squared error of the predicted noise, (ε̂ - ε)², over
trajectories of the full-precision sampler that no chain of any seed calibrates on, each sampling step weighted by what
an error there does to the sample (`quest.learning.trajectories.influence`). Unweighted, the last step would be most of
it, which the sample hardly shows.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from quest import architectures, methods, noise
from quest.config.dataset import DatasetSettings
from quest.config.reading import merged, validate
from quest.config.values import Bits
from quest.deploy import start
from quest.diffusion import denoiser as denoisers
from quest.diffusion.correction import Correction
from quest.learning import calibration as calibrations
from quest.learning import trajectories
from quest.learning.calibration import Calibration, Samples
from quest.learning.finetuning import predict
from quest.quantization.network import QuantizedNetwork

_BATCH = 64


class Trial(NamedTuple):
    """changes: settings by dotted key. loss: weighted mean of (ε̂ - ε)², held out. seconds: of the finetuning."""

    changes: dict[str, Any]
    loss: float
    seconds: float


def parse(text: str) -> tuple[str, list[Any]]:
    """``key=value,value,…`` to the dotted key and its values as YAML. Raises ValueError for another form."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise ValueError(f"--vary: {text!r} is not <key>=<value>,<value>,…, like methods.quest.cma_weight_lr=1e-5,1e-4")
    # YAML 1.1 reads 1e-4 as text.
    return key, [_number(yaml.safe_load(value)) for value in values.split(",")]


def trials(
    settings: DatasetSettings,
    method: str,
    bits: Bits,
    *,
    model: Path,
    seed: int,
    calibration: Path,
    reconstruction: Path | None,
    vary: Mapping[str, Sequence[Any]],
    device: torch.device,
) -> Iterator[Trial]:
    """Finetune and score one cell for every combination of the values of ``vary``.

    Raises ConfigError for a key or value that the settings do not take, before anything is trained.
    """
    combinations = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    changed = [_changed(settings, changes) for changes in combinations]
    held_out: tuple[Samples, Tensor, Tensor] | None = None
    for changes, trial_settings in zip(combinations, changed, strict=True):
        denoiser = denoisers.load(model, device)
        data = calibrations.load(calibration, denoiser, settings).to(device)
        drawn = None if held_out else calibrations.record(denoiser, settings, noise.TUNING, device).to(device)
        torch.manual_seed(seed)
        network, _ = start.network(trial_settings, denoiser, method, bits, reconstruction)
        if drawn is not None:
            held_out = _held_out(network, drawn)
        assert held_out is not None
        begun = time.perf_counter()
        outcome = methods.get(method).quantize(network, data, trial_settings.method(method), seed)
        yield Trial(changes, noise_error(network, *held_out, outcome.correction), time.perf_counter() - begun)


def _held_out(network: QuantizedNetwork, drawn: Calibration) -> tuple[Samples, Tensor, Tensor]:
    """All samples of ``drawn``, the noise that full precision predicts for them, and the weights of the steps."""
    samples = drawn.samples(len(drawn))
    with network.quantizing(weights=False, activations=False):
        wanted = full_precision_noise(network, samples)
    return samples, wanted, trajectories.influence(network, drawn, noise.TUNING).cpu()


@torch.no_grad()
def noise_error(
    network: QuantizedNetwork,
    samples: Samples,
    wanted: Tensor,
    weights: Tensor,
    correction: Correction | None = None,
) -> float:
    """Mean of w · (ε̂ - ε)² over ``samples``, of the corrected prediction where the method corrects it.

    wanted: (n, C, H, W), the noise ε that full precision predicts. weights: w of each sampling step, (steps,).
    """
    total = 0.0
    for batch in _one_step_batches(samples):
        predicted, step = predict(network, samples, batch), int(samples.steps[batch[0]])
        if correction is not None:
            predicted = correction.noise(predicted, step)
        total += float(weights[step]) * float((predicted - wanted[batch]).double().square().sum())
    return total / wanted.numel()


@torch.no_grad()
def full_precision_noise(network: nn.Module, samples: Samples) -> Tensor:
    """What ``network`` predicts for ``samples``, (n, C, H, W)."""
    parts = torch.arange(len(samples)).split(_BATCH)
    return torch.cat([architectures.predict(network, samples.inputs(batch)) for batch in parts])


def _one_step_batches(samples: Samples) -> Iterator[Tensor]:
    for step in samples.steps.unique().tolist():
        yield from (samples.steps == step).nonzero().flatten().split(_BATCH)


def markdown(done: Sequence[Trial]) -> str:
    """The trials as a Markdown table, best first."""
    from tabulate import tabulate

    keys = list(done[0].changes)
    rows = [
        [*(str(trial.changes[key]) for key in keys), f"{trial.loss:.4g}", f"{trial.seconds:.0f}"]
        for trial in sorted(done, key=lambda trial: trial.loss)
    ]
    return tabulate(rows, [*keys, "held-out error of the noise, weighted", "seconds"], "github", disable_numparse=True)


def _changed(settings: DatasetSettings, changes: Mapping[str, Any]) -> DatasetSettings:
    content = settings.model_dump(mode="json", exclude_unset=True)  # what nobody set has to fit nothing
    for key, value in changes.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        content = merged(content, value)
    return validate(DatasetSettings, content, "--vary")


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
