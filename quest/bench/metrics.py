"""Speed of the metrics beside torchmetrics and torch-fidelity, in one run: features, statistics, and the distance.

Features are float32 and statistics float64, TF32 and bfloat16 are off. Implementations take turns, and the median of
the rounds counts, after one that does not; of what takes longer than LONG seconds, the first call counts alone.
Inception has random weights: its speed does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from quest.artifacts import ArtifactError
from quest.bench import measuring
from quest.metrics import inception
from quest.metrics.distances import FrechetDistance, fit
from quest.metrics.reference import CHUNK
from quest.metrics.statistics import Moments
from quest.report import text

WIDTH = 2048  # Inception's pooled features
SIZE = 256  # of the images
LONG = 5.0
_BATCH = 64
_CPU_IMAGES = 32  # on the CPU, where an image takes a hundred times as long


class Timing(NamedTuple):
    """What was timed, where and by whom; its seconds, and images per second where that says more."""

    task: str
    device: str
    implementation: str
    seconds: float
    rate: float | None = None


def run(images: int, rows: int, rounds: int = 2) -> str:
    """A text table of timings: features of ``images`` on a GPU and of a few on the CPU, statistics of ``rows``."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    lines = [_machine()]
    with inception.without_tf32(), torch.inference_mode():
        timings: list[Timing] = []
        for device in devices:
            try:
                timings += _extraction(device, images if device == "cuda" else min(_CPU_IMAGES, images), rounds)
            except ArtifactError as error:
                lines.append(f"features not timed: {error}")
            timings += _statistics(device, rows, rounds)
            found, agreement = _distance(device, rows, rounds)
            timings += found
            lines.append(agreement)
    return "\n".join([*lines, "", _table(timings)])


def _extraction(device: str, images: int, rounds: int) -> list[Timing]:
    """Inception features of uint8 images on the CPU; ours with those of sFID and IS, as torch-fidelity's with IS."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (images, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        own = inception.untrained(Path(folder), device)
        weights = Path(folder) / "weights.pth"
        torch.save(own.network.state_dict(), weights)
        network = inception.network_class()("theirs", inception.LAYERS, feature_extractor_weights_path=str(weights))
        metric: Any = FrechetInceptionDistance(
            feature=WIDTH, feature_extractor_weights_path=str(weights), antialias=False
        )
    network, other = network.to(device), metric.inception.to(device)

    for function in (own, network, other):  # a call that counts alone would pay for the first of a kind
        function(pictures[:2].to(device))

    def batched(function: Callable[[Tensor], Any]) -> Callable[[], Any]:
        return lambda: [function(batch.to(device)) for batch in pictures.split(_BATCH)]

    seconds = _take_turns(
        {
            "quest": lambda: own(pictures, _BATCH),
            "torch-fidelity": batched(network),
            "torchmetrics": batched(other),
        },
        device,
        rounds,
    )
    task = f"features of {images} images of {SIZE}×{SIZE}, images/s"
    return [Timing(task, device, name, value, images / value) for name, value in seconds.items()]


def _statistics(device: str, rows: int, rounds: int) -> list[Timing]:
    features = _features(rows, 0).to(device)

    def own() -> None:
        moments = Moments(WIDTH, device)
        for part in features.split(CHUNK):
            moments.update(part)
        moments.gaussian()

    def theirs() -> None:
        metric = _given().to(device)
        for part in features.split(CHUNK):
            metric.update(part, real=True)

    contestants: dict[str, Callable[[], Any]] = {"quest": own, "torchmetrics": theirs}
    if device == "cpu" and (functions := _torch_fidelity()) is not None:
        contestants["torch-fidelity"] = lambda: functions[0](features.double())
    seconds = _take_turns(contestants, device, rounds)
    return [Timing(f"FID statistics of {rows:,} × {WIDTH}, s", device, name, value) for name, value in seconds.items()]


def _distance(device: str, rows: int, rounds: int) -> tuple[list[Timing], str]:
    """The distance from two means and covariances, and how far the implementations agree."""
    real, generated = (_features(max(rows, WIDTH + 2), seed).to(device) for seed in (1, 2))
    a, b = fit(real), fit(generated)
    metric = _given().to(device)
    for features, is_real in ((real, True), (generated, False)):
        for part in features.split(CHUNK):
            metric.update(part.double(), real=is_real)  # its result has the dtype of what it was given

    def theirs() -> float:
        metric._computed = None  # it keeps what it computed before
        return metric.compute().item()

    values: dict[str, float] = {}

    def noting(name: str, function: Callable[[], float]) -> Callable[[], None]:
        return lambda: values.__setitem__(name, function())

    contestants = {
        "quest": noting("quest", lambda: FrechetDistance(a, device)(b)),
        "torchmetrics": noting("torchmetrics", theirs),
    }
    if device == "cpu" and (functions := _torch_fidelity()) is not None:
        pair = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in (a, b)]
        contestants["torch-fidelity"] = noting("torch-fidelity", lambda: functions[1](pair))
    seconds = _take_turns(contestants, device, rounds)
    gaps = [f"{name} {abs(value / values['quest'] - 1):.1e}" for name, value in values.items() if name != "quest"]
    timings = [Timing(f"FID from statistics, D = {WIDTH}, s", device, name, value) for name, value in seconds.items()]
    return timings, f"FID on {device}: {values['quest']:.12g}; relative difference of {', '.join(gaps)}"


def _take_turns(contestants: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each over ``rounds``, after a first that counts for those alone that take long."""
    first = {name: measuring.seconds(function, device) for name, function in contestants.items()}
    quick = {name: function for name, function in contestants.items() if first[name] < LONG}
    turns = [{name: measuring.seconds(function, device) for name, function in quick.items()} for _ in range(rounds)]
    return first | {name: statistics.median(turn[name] for turn in turns) for name in quick}


def _features(rows: int, seed: int) -> Tensor:
    """Correlated features (rows, WIDTH) float32 with variances over several orders, as Inception's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)) / WIDTH**0.5
    return torch.randn(rows, WIDTH, generator=generator) * torch.logspace(0, -2, WIDTH) @ mixing + 0.4


class _Given(nn.Identity):
    """Stands where torchmetrics expects a network: the features are given, so it returns them."""

    num_features = WIDTH


def _given() -> Any:
    return FrechetInceptionDistance(feature=_Given()).set_dtype(torch.float64)


def _torch_fidelity() -> tuple[Callable[..., Any], Callable[..., float]] | None:
    """Its functions from features to statistics, and from two statistics to FID; None where it is not installed."""
    try:
        from torch_fidelity import metric_fid  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):
        return None
    return metric_fid.fid_features_to_statistics, lambda pair: metric_fid.fid_statistics_to_metric(
        *pair, verbose=False
    )[metric_fid.KEY_METRIC_FID]


def _machine() -> str:
    where = measuring.machine("cuda" if torch.cuda.is_available() else "cpu")
    return f"{where}; torch-fidelity {inception.library_version()}; TF32 off, bfloat16 off"


def _table(timings: list[Timing]) -> str:
    base = {(t.task, t.device): t.seconds for t in timings if t.implementation == "quest"}
    rows = [("task", "device", "by", "value", "of quest's time")]
    for t in timings:
        value = f"{t.rate:,.1f}" if t.rate is not None else f"{t.seconds:.3f}"
        rows.append((t.task, t.device, t.implementation, value, f"{t.seconds / base[t.task, t.device]:.2f}×"))
    return text.table(rows)
