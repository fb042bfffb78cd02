"""The command line: one command for each stage; every Snakemake rule calls one of these.

Heavy libraries are imported inside the commands, so that `quest --help`, tables and tracking start at once.
Settings come from config/ unless a rule passes the section it depends on as JSON with --settings.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from quest import analysis, config
from quest.artifacts import ArtifactError

FILE = click.Path(path_type=Path, dir_okay=False)


class _Commands(click.Group):
    """Turns the errors that a user can mend into one clear message and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ArtifactError, config.ConfigError, ValueError) as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted; nothing half-written is left, run the same command to go on", err=True)
            sys.exit(130)


@click.group(cls=_Commands)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="quest-diffusion")
def main(debug: bool) -> None:
    """Low-bit diffusion models by efficient selective finetuning (QuEST)."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr
    )
    for name in ("matplotlib", "PIL", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _settings(dataset: str, given: str | None) -> config.DatasetSettings:
    """The dataset's protocol; ``given`` is the JSON that a rule passes (the parts that it depends on)."""
    if given is None:
        return config.load_dataset(dataset)
    return config.validate(config.DatasetSettings, json.loads(given), "--settings")


def _stage(*options: Any) -> Any:
    """Arguments that the stages share: the dataset, its settings, and ``options``."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        function = click.option(
            "--settings", help="The dataset's protocol as JSON; default: config/datasets/DATASET.yaml."
        )(function)
        return click.argument("dataset")(function)

    return decorate


_seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the whole chain."
)
_model = click.option("--model", type=FILE, required=True, help="Full-precision model.")
_output = click.option("--output", type=FILE, required=True, help="File to write.")
_device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; auto takes a GPU when there is one."
)


@main.command()
@_stage(
    click.option("--model", type=FILE, required=True), click.option("--extractor", type=FILE, required=True), _device
)
@click.option("--allow-cpu", is_flag=True, help="Train even without a GPU (hours).")
def pretrain(dataset: str, settings: str | None, model: Path, extractor: Path, device: str, allow_cpu: bool) -> None:
    """Train the embedded full-precision model and the feature extractor of DATASET."""
    from quest import pretraining

    pretraining.run(_settings(dataset, settings), model, extractor, device=device, allow_cpu=allow_cpu)


@main.command()
@_stage(click.option("--extractor", type=FILE, required=True), _output, _device)
def reference(dataset: str, settings: str | None, extractor: Path, output: Path, device: str) -> None:
    """Feature statistics of the real images of DATASET."""
    from quest.metrics import reference

    reference.run(dataset, _settings(dataset, settings), extractor, output, device=device)


@main.command()
@_stage(_model, _seed, _output, _device)
def calibrate(dataset: str, settings: str | None, model: Path, seed: int, output: Path, device: str) -> None:
    """Record states of the full-precision sampler to calibrate and finetune on."""
    from quest import calibration

    calibration.run(_settings(dataset, settings), model, seed, output, device=device)


@main.command()
@_stage(_model, click.option("--weight-bits", type=click.IntRange(2, 8), required=True), _seed)
@click.option(
    "--variant",
    type=click.Choice(config.VARIANTS),
    default="blocks",
    show_default=True,
    help="Which layers are learned together.",
)
@click.option("--calibration", "calibration_file", type=FILE, required=True)
@_output
@_device
def reconstruct(
    dataset: str,
    settings: str | None,
    model: Path,
    weight_bits: int,
    seed: int,
    variant: config.Variant,
    calibration_file: Path,
    output: Path,
    device: str,
) -> None:
    """Learn the rounding of the weights block by block; shared by every method that starts from it."""
    from quest import reconstruction

    reconstruction.run(
        _settings(dataset, settings), model, weight_bits, seed, calibration_file, output, device=device, variant=variant
    )


@main.command()
@_stage(_model, click.option("--method", required=True), click.option("--bits", required=True), _seed)
@click.option("--calibration", "calibration_file", type=FILE, required=True)
@click.option(
    "--reconstruction", "reconstruction_file", type=FILE, help="Learned rounding; for the methods that start from it."
)
@_output
@_device
def finetune(
    dataset: str,
    settings: str | None,
    model: Path,
    method: str,
    bits: str,
    seed: int,
    calibration_file: Path,
    reconstruction_file: Path | None,
    output: Path,
    device: str,
) -> None:
    """Quantize the model by a method and write its low-bit checkpoint."""
    from quest import methods

    methods.run(
        _settings(dataset, settings),
        model,
        method,
        config.Bits.parse(bits),
        seed,
        calibration_file,
        reconstruction_file,
        output,
        device=device,
    )


@main.command()
@_stage(_model, click.option("--checkpoint", type=FILE, help="Low-bit checkpoint; full precision without."), _seed)
@click.option(
    "--shard",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which of evaluation.shards parts to draw.",
)
@_output
@_device
def sample(
    dataset: str,
    settings: str | None,
    model: Path,
    checkpoint: Path | None,
    seed: int,
    shard: int,
    output: Path,
    device: str,
) -> None:
    """Draw one shard of images; image i is the same whatever the shards, batches and devices."""
    from quest import sampling

    sampling.run(_settings(dataset, settings), model, checkpoint, seed, shard, output, device=device)


@main.command()
@_stage(click.argument("samples", type=FILE, nargs=-1, required=True))
@click.option(
    "--full-precision",
    type=FILE,
    multiple=True,
    required=True,
    help="Shards of the full-precision model on the same seeds.",
)
@click.option("--reference", "reference_file", type=FILE, required=True)
@click.option("--extractor", type=FILE, required=True)
@click.option("--checkpoint", type=FILE, help="Low-bit checkpoint, for its bit account; full precision without.")
@_model
@_output
@_device
def measure(
    dataset: str,
    settings: str | None,
    samples: tuple[Path, ...],
    full_precision: tuple[Path, ...],
    reference_file: Path,
    extractor: Path,
    checkpoint: Path | None,
    model: Path,
    output: Path,
    device: str,
) -> None:
    """Metrics of one cell from all of its SAMPLES shards."""
    from quest.metrics import measure

    measure.run(
        dataset,
        _settings(dataset, settings),
        samples,
        full_precision,
        reference_file,
        extractor,
        checkpoint,
        model,
        output,
        device=device,
    )


@main.command()
@click.argument("metrics", type=FILE)
@_output
def score(metrics: Path, output: Path) -> None:
    """The numbers of a METRICS file alone, for `dvc metrics`."""
    from quest import tables

    tables.score(metrics, output)


@main.command()
@click.argument("dataset")
@click.argument("metrics", type=FILE, nargs=-1, required=True)
@click.option("--output", type=FILE, required=True, help="The table as a JSON artifact.")
@click.option("--csv", type=FILE, required=True)
@click.option("--markdown", type=FILE, required=True)
def table(dataset: str, metrics: tuple[Path, ...], output: Path, csv: Path, markdown: Path) -> None:
    """One table of DATASET from the METRICS files of its cells: a row a cell, mean and spread over seeds."""
    from quest import tables

    tables.run(dataset, metrics, output, csv, markdown)


@main.command()
@click.argument("dataset")
@click.argument("samples", type=FILE, nargs=-1, required=True)
@click.option("--table", "table_file", type=FILE, required=True)
@click.option("--grid", type=FILE, required=True, help="PNG of the same seeds under every cell.")
@click.option("--comparison", type=FILE, required=True, help="PNG of FID and closeness by bit-width.")
def figures(dataset: str, samples: tuple[Path, ...], table_file: Path, grid: Path, comparison: Path) -> None:
    """Pictures of DATASET: sample grid from the first SAMPLES shard of each cell, and the comparison chart."""
    from quest import figures

    figures.run(dataset, samples, table_file, grid, comparison)


@main.group()
def analyse() -> None:
    """The paper's studies: each writes its numbers (CSV) and a chart of them (PNG and SVG)."""


def _analyse(study: str) -> None:
    """Add the command of one study; its files are options, repeated where there are many."""

    def command(dataset: str, settings: str | None, seed: int, device: str, **given: Any) -> None:
        files = {name: paths if isinstance(paths, tuple) else (paths,) for name, paths in given.items()}
        outputs = analysis.Outputs(**{name: files.pop(name)[0] for name in analysis.Outputs._fields})
        analysis.run(study, dataset, _settings(dataset, settings), files, seed, outputs, device)

    inputs = [
        click.option(f"--{name.removesuffix('s')}", name, type=FILE, required=True, multiple=name.endswith("s"))
        for name in analysis.STUDIES[study].files
    ]
    outputs = [click.option(f"--{name}", type=FILE, required=True) for name in analysis.Outputs._fields]
    analyse.command(study, help=analysis.STUDIES[study].title)(_stage(*inputs, _seed, *outputs, _device)(command))


for _study in analysis.STUDIES:
    _analyse(_study)


@main.command()
@click.argument("tables", type=FILE, nargs=-1, required=True)
@click.option("--figure", "figure_files", type=FILE, multiple=True, help="Pictures to attach.")
@click.option("--output", type=FILE, help="Record of the MLflow runs that were written.")
def track(tables: tuple[Path, ...], figure_files: tuple[Path, ...], output: Path | None) -> None:
    """Log every row of TABLES to MLflow; a rerun updates its run instead of adding one."""
    from quest import tracking

    tracking.run(tables, figure_files, output)


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(port: int) -> None:
    """Fill MLflow from the tables in results/ and open its page on loopback."""
    from quest import tracking

    tracking.ui(port)


@main.group()
def bench() -> None:
    """Measure speed."""


@bench.command("stages")
def bench_stages() -> None:
    """Print the seconds of each stage of the last run (from Snakemake's benchmark files)."""
    from quest import benchmarks

    click.echo(benchmarks.stages(Path("benchmarks")))


@bench.command("metrics")
@click.option("--images", type=click.IntRange(min=64), default=512, show_default=True, help="Images of 256×256.")
@click.option("--rows", type=click.IntRange(min=2050), default=10_000, show_default=True, help="Rows of features.")
def bench_metrics(images: int, rows: int) -> None:
    """Time feature extraction, FID statistics and FID beside torchmetrics and torch-fidelity, where installed."""
    from quest.metrics import benchmark

    click.echo(benchmark.run(images, rows))


@bench.command("evaluator")
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
@_device
def bench_evaluator(samples: Path, reference_file: Path, extractor: Path, published: bool, device: str) -> None:
    """Measure two batches as ADM's evaluator does; as JSON, or beside its published row."""
    from quest.device import resolve
    from quest.metrics import adm, evaluation

    row = evaluation.of_batches(samples, reference_file, extractor, resolve(device))
    click.echo(json.dumps(row, indent=1))
    if published:
        for name, expected in adm.PUBLISHED_ADM_G_U.items():
            gap = row[name] - expected
            click.echo(f"{name}: {row[name]:.4f}, ADM prints {expected:.4f} ({gap:+.4f}, {gap / expected:+.2%})")


@main.group("config")
def config_group() -> None:
    """Check and document the configuration."""


@config_group.command("check")
@click.option("--config", "file", type=FILE, default=config.CONFIG_FILE, show_default=True)
def config_check(file: Path) -> None:
    """Validate a run and list its cells."""
    run = config.load(file)
    for dataset in run.datasets:
        for cell in run.cells():
            click.echo(f"{dataset} {cell.method} {cell.bits} seeds {run.run.seeds}")


@config_group.command("docs")
@click.option("--output", type=FILE, default=Path("docs/config.md"), show_default=True)
def config_docs(output: Path) -> None:
    """Write the table of every key, its type, default and meaning."""
    from quest import config_reference

    output.write_text(config_reference.markdown())
