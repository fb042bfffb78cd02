"""`quest bench` and `quest testkit`: speed and memory, and models of the papers' sizes."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quest.config.dataset import load_dataset
from quest.config.reading import unknown
from quest.config.values import Bits
from quest.stages import DATASET, DEVICE, FILE, PROTOCOL, protocol

if TYPE_CHECKING:
    import torch


@click.group()
def bench() -> None:
    """Measure speed and memory."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of what is timed; read when tqdm is imported


@bench.command("stages")
def bench_stages() -> None:
    """Print the seconds of each stage of the last run (from Snakemake's benchmark files)."""
    from quest.report import costs

    click.echo(costs.stages(Path("benchmarks")))


_network = click.Choice(["imagenet", "bedrooms"])


@bench.command("weights", params=[DEVICE])
@click.option("--network", type=_network, default="bedrooms", show_default=True, help="Which LDM-4 U-Net.")
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True)
def bench_weights(network: str, bits: int, device: torch.device) -> None:
    """Time the search for the weight scales of a U-Net of the paper, random weights, at its real size."""
    from quest.bench import weights

    click.echo(weights.run(network, bits, device))


@bench.command("reconstruction", params=[DEVICE])
@click.option(
    "--network", "networks", type=_network, multiple=True, default=("imagenet", "bedrooms"), show_default=True
)
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Steps of each kind.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=50, show_default=True, help="Cut the published batches down to this."
)
@click.option("--tf32", is_flag=True, help="Convolutions in TF32 on a GPU, as in the published code.")
def bench_reconstruction(
    networks: tuple[str, ...], iterations: int, batch: int, tf32: bool, device: torch.device
) -> None:
    """Time optimisation steps on the U-Nets of the paper, random weights, beside the published code's."""
    from quest.bench import training

    click.echo(training.run(networks, iterations, batch, device, tf32))


@bench.command("pipeline", params=[DEVICE])
@click.option("--network", type=_network, default="bedrooms", show_default=True, help="Which LDM-4 U-Net.")
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Steps of each kind.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=50, show_default=True, help="Cut the published batches down to this."
)
@click.option("--tf32", is_flag=True, help="Convolutions in TF32 on a GPU, as in the published code.")
def bench_pipeline(network: str, iterations: int, batch: int, tf32: bool, device: torch.device) -> None:
    """All that quantizing a U-Net of the paper takes, random weights, as one table beside the published times."""
    from quest.bench import pipeline

    click.echo(pipeline.run(network, iterations, batch, device, tf32))


@bench.command("metrics")
@click.option("--images", type=click.IntRange(min=64), default=512, show_default=True, help="Images of 256×256.")
@click.option("--rows", type=click.IntRange(min=2050), default=10_000, show_default=True, help="Rows of features.")
def bench_metrics(images: int, rows: int) -> None:
    """Time feature extraction, FID statistics and FID beside torchmetrics and torch-fidelity, where installed."""
    from quest.bench import metrics

    click.echo(metrics.run(images, rows))


@bench.command("memory", params=[DEVICE])
@click.option("--images", type=click.IntRange(min=100), default=50_000, show_default=True, help="Images of 256×256.")
@click.option("--shard", type=click.IntRange(min=1), default=1_000, show_default=True, help="Images of one file.")
def bench_memory(images: int, shard: int, device: torch.device) -> None:
    """Measure random images, shard by shard, by all metrics, and print the peak memory of the process."""
    from quest.bench import memory

    click.echo(memory.run(images, shard, device))


@bench.command("activations")
@click.option("--network", "names", type=click.Choice(["bedrooms", "imagenet", "stable-diffusion"]), multiple=True)
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1, 4, 32), show_default=True)
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), default=24.0, show_default=True, help="GiB.")
def bench_activations(names: tuple[str, ...], batches: tuple[int, ...], memory: float) -> None:
    """What steps of finetuning keep at the papers' sizes, and what a limit of memory has them compute again (shapes
    alone, seconds)."""
    from quest.bench import activations

    click.echo(activations.run(names or ("bedrooms", "imagenet", "stable-diffusion"), batches, memory))


@bench.command("growth", params=[DEVICE])
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Of which the median counts.")
@click.option("--work", "works", multiple=True, help="Only this work, like sampling; may be repeated. Default: all.")
@click.option("--output", type=FILE, help="JSON to write: every measurement.")
@click.option("--saved", type=FILE, help="Measure nothing: show what --output wrote before.")
@click.option("--chart", type=FILE, help="Picture to write, .png or .svg.")
def bench_growth(
    repeats: int,
    works: tuple[str, ...],
    output: Path | None,
    saved: Path | None,
    chart: Path | None,
    device: torch.device,
) -> None:
    """How time and memory grow with batch, samples, iterations, parameters and bits, as exponents."""
    import torch

    from quest.bench import growth, measuring

    torch.set_num_threads(1)
    logging.getLogger("quest").setLevel(logging.ERROR)
    if saved is not None:
        where, grown = growth.load(saved)
    else:
        where, grown = f"{measuring.machine(device)}; {growth.clock(device)}", []
        for each in growth.run(device, repeats, works):
            grown.append(each)
            click.echo(f"{each.curve.work}, {each.curve.quantity}: time ∝ {each.time}", err=True)
            if output is not None:
                growth.save(grown, device, output)  # after each curve, for a run that is ended before its end
    click.echo(f"{where}\n\n{growth.table(grown)}")
    if chart is not None:
        growth.chart(grown, chart)


@bench.command("estimate", params=[DATASET, DEVICE])
@click.option("--method", default="quest", show_default=True)
@click.option("--bits", default="w4a4", show_default=True)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the protocol; may be repeated.")
def bench_estimate(dataset: str, method: str, bits: str, changes: tuple[str, ...], device: torch.device) -> None:
    """What `quest estimate` says of one cell of DATASET, beside what its jobs then take, one after another.

    A model that is not here has random weights of its size.
    """
    import tempfile

    import torch

    from quest.bench import measuring
    from quest.estimate import rehearsal, speed

    settings = rehearsal.settings_of(dataset, changes)
    torch.set_num_threads(speed.THREADS)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        here = speed.Speed(speed.FILE, device)
        for pair in rehearsal.run(dataset, settings, method, bits, Path(folder), here):
            pairs.append(pair)
            click.echo(rehearsal.sentence(pair, device), err=True)  # for a run that is ended before its end
    click.echo(f"{dataset} {' '.join(changes)}\n{measuring.machine(device)}\n\n{rehearsal.table(pairs, device)}")


@bench.command("evaluator", params=[DEVICE])
@click.option("--samples", type=FILE, required=True, help="Images to measure, a batch of ADM's layout (.npz).")
@click.option("--reference", "reference_file", type=FILE, required=True, help="Reference batch of the same layout.")
@click.option(
    "--extractor",
    type=FILE,
    default=Path("inception-fid"),
    show_default=True,
    help="inception-fid from the user's cache, a path of its weights, or an extractor artifact.",
)
@click.option("--published", is_flag=True, help="Beside it, what ADM prints for its upsampled ImageNet-256 samples.")
def bench_evaluator(
    samples: Path, reference_file: Path, extractor: Path, published: bool, device: torch.device
) -> None:
    """Measure two batches as ADM's evaluator does; as JSON, or beside its published row."""
    from quest.metrics import adm, evaluation

    row = evaluation.of_batches(samples, reference_file, extractor, device)
    click.echo(json.dumps(row, indent=1))
    if published:
        for name, expected in adm.PUBLISHED_ADM_G_U.items():
            gap = row[name] - expected
            click.echo(f"{name}: {row[name]:.4f}, ADM prints {expected:.4f} ({gap:+.4f}, {gap / expected:+.2%})")


@bench.command("embedded", params=[*PROTOCOL, DEVICE])
@click.option("--images", type=click.IntRange(min=240), default=1_000, show_default=True, help="Images to draw.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of their noise.")
@click.option("--grid", type=FILE, help="PNG of the first 64 of them.")
def bench_embedded(
    dataset: str, settings: str | None, images: int, seed: int, grid: Path | None, device: torch.device
) -> None:
    """How good the full-precision model of DATASET is, one of shapes, and its first stage, extractor and CLIP model."""

    from quest.bench import embedded

    click.echo(embedded.run(protocol(dataset, settings), images, seed, grid, device))


@bench.command("deploy", params=[DEVICE])
@click.option(
    "--network",
    type=click.Choice(["imagenet", "bedrooms", "stable-diffusion"]),
    default="bedrooms",
    show_default=True,
    help="Which U-Net: of an LDM-4, or of Stable Diffusion 1.x.",
)
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1, 8, 50), show_default=True)
@click.option(
    "--minutes", type=float, default=12.0, show_default=True, help="On a GPU: what is not ready then is given up."
)
@click.option("--way", "ways", multiple=True, help="On a GPU: one of the first column's names; by default all.")
@click.option("--profile", is_flag=True, help="On a GPU: say which kernels take the time.")
@click.option("--model", type=FILE, help="On a CPU: a model artifact, whose denoiser is taken.")
@click.option("--bits", default="w8a8", show_default=True, help="On a CPU.")
@click.option("--bf16/--no-bf16", default=True, show_default=True, help="On a CPU: measure it too.")
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="On a CPU.")
@click.option(
    "--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Of the cell whose hours are said."
)
def bench_deploy(
    network: str,
    batches: tuple[int, ...],
    minutes: float,
    ways: tuple[str, ...],
    profile: bool,
    model: Path | None,
    bits: str,
    bf16: bool,
    repeats: int,
    steps: int,
    device: torch.device,
) -> None:
    """Time a step in full precision, simulated, and with integers multiplied; hours of a cell, memory, size.

    Of one of the papers' U-Nets with random weights; on a CPU of the denoiser of a model artifact, where one is named,
    and beside torchao and OpenVINO, where they are installed.
    """
    from quest.bench import deploy, measuring
    from quest.diffusion import denoiser as denoisers

    click.echo(measuring.machine(device))
    click.echo(deploy.header(steps))
    if device.type == "cuda":
        from quest.bench import deploy_gpu

        for way in ways:
            if way not in deploy_gpu.WAYS:
                raise click.UsageError(f"--way: {unknown(way, deploy_gpu.WAYS)}")
        rows = deploy_gpu.rows(network, batches, minutes, device, ways, profile)
    else:
        loaded = deploy.random(network) if model is None else denoisers.load(model)
        rows = (row for batch in batches for row in deploy.on_cpu(loaded, bits, batch, repeats, bf16))
    for row in rows:
        click.echo(row.line(steps) if isinstance(row, deploy.Row) else row)


_FOLDER = click.Path(path_type=Path, file_okay=False)


@bench.command("front", params=[*PROTOCOL, DEVICE])
@click.option("--method", help="Whose points to make; none: join those that are there.")
@click.option("--bits", "names", multiple=True, help="Uniform bits like w4a8; may be repeated. Default: w2a8 to w8a8.")
@click.option(
    "--choice",
    "chosen",
    type=click.Choice(("uniform", "mixed")),
    multiple=True,
    default=("uniform", "mixed"),
    show_default=True,
    help="Weight bits uniform, or of each layer in as many bytes; may be repeated.",
)
@click.option("--images", type=click.IntRange(min=2), default=64, show_default=True, help="Images to compare.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--measured", type=_FOLDER, help="Metrics of cells (results/metrics/DATASET), to take uniform bits from.")
@click.option("--output", type=_FOLDER, required=True, help="Folder to write to; several processes may share it.")
def bench_front(
    dataset: str,
    settings: str | None,
    method: str | None,
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    images: int,
    seed: int,
    measured: Path | None,
    output: Path,
    device: torch.device,
) -> None:
    """Quality against size: uniform weight bits, and bits chosen layer by layer in as many bytes, on DATASET's model.

    A point is a file of OUTPUT, and one that is there is not made again. All that are there are joined: front.csv,
    front.md, front.png.
    """
    from quest.report import front as joined

    if method is not None:
        from quest.bench import measuring
        from quest.own import front

        click.echo(measuring.machine(device))
        given = (list(map(Bits.parse, names)), chosen, images, seed, output, device, measured)
        for row in front.run(dataset, protocol(dataset, settings, method), method, *given):
            click.echo("  ".join(f"{key} {value}" for key, value in row.items()))
    joined.write(output, seed)
    click.echo(output / "front.md")


@click.group()
def testkit() -> None:
    """Try models of the papers' sizes with random weights."""


@testkit.command("random-checkpoint")
@click.argument("dataset")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
def testkit_random_checkpoint(dataset: str, output: Path) -> None:
    """Write random weights of the model of DATASET in its published layout."""
    from quest.bench import testkit

    testkit.random_checkpoint(dataset, output, load_dataset(dataset).architecture)


@testkit.command("truesize", params=[DEVICE])
@click.argument("dataset")
@click.option("--source", type=click.Path(path_type=Path), help="Weights to take; random ones without.")
def testkit_truesize(dataset: str, source: Path | None, device: torch.device) -> None:
    """Take a model of the size of DATASET's through import, calibration, 4 bits, finetuning and sampling."""
    import tempfile

    from quest.bench import testkit

    settings = load_dataset(dataset)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source is None:
            source = folder / ("source.ckpt" if settings.architecture else "source")
            testkit.random_checkpoint(dataset, source, settings.architecture)
        for stage, seconds, peak, notes in testkit.walk(
            testkit.small(settings, source, folder / "prompts.txt"), folder, device
        ):
            click.echo(f"{dataset} {stage}: {seconds:.1f} s, peak {peak:.0f} MiB {json.dumps(notes) if notes else ''}")
