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
from quest.artifacts import ArtifactError, write_bytes

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


def _settings(dataset: str, given: str | None, method: str = config.FULL_PRECISION) -> config.DatasetSettings:
    """The protocol of a cell; ``given`` is the JSON that a rule passes (the parts that it depends on)."""
    if given is None:
        return config.of_cell(config.load_dataset(dataset), method, config.load_variants())
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
_allow_cpu = click.option("--allow-cpu", is_flag=True, help="Train even without a GPU (hours).")
# What a method quantizes a model by.
_cell = (
    _model,
    click.option("--method", required=True, help="A method, or a variant of one (config/variants.yaml)."),
    click.option("--bits", required=True),
    _seed,
    click.option("--calibration", "calibration_file", type=FILE, required=True),
    click.option(
        "--reconstruction",
        "reconstruction_file",
        type=FILE,
        help="Learned rounding; for the methods that start from it.",
    ),
)


@main.command()
@_stage(
    click.option("--model", type=FILE, required=True),
    click.option("--extractor", type=FILE, required=True),
    click.option("--clip", type=FILE, help="CLIP artifact whose text encoder conditions a model of prompts."),
    _device,
    _allow_cpu,
)
def pretrain(
    dataset: str,
    settings: str | None,
    model: Path,
    extractor: Path,
    clip: Path | None,
    device: str,
    allow_cpu: bool,
) -> None:
    """Train the embedded full-precision model and the feature extractor of DATASET."""
    from quest import pretraining

    pretraining.run(_settings(dataset, settings), model, extractor, device=device, allow_cpu=allow_cpu, clip=clip)


@main.command("pretrain-clip")
@_stage(_output, _device, _allow_cpu)
def pretrain_clip(dataset: str, settings: str | None, output: Path, device: str, allow_cpu: bool) -> None:
    """Train the CLIP model of an embedded DATASET of prompts: its text encoder, and its CLIP score."""
    from quest import pretraining

    pretraining.run_clip(_settings(dataset, settings), output, device=device, allow_cpu=allow_cpu)


@main.command("import")
@_stage(_output)
@click.option("--source", help="Instead of the protocol's: folder, .ckpt or hub id.")
def import_(dataset: str, settings: str | None, source: str | None, output: Path) -> None:
    """Convert the published full-precision model of DATASET, once."""
    from quest import importing

    protocol = _settings(dataset, settings)
    importing.run(protocol if source is None else protocol.model_copy(update={"source": source}), output)


@main.command()
@click.argument("source", type=FILE)
@_output
@click.option("--count", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def prompts(source: Path, output: Path, count: int, seed: int) -> None:
    """Choose prompts from SOURCE, a text file with one a line or COCO's captions (.json)."""
    from quest import prompts

    prompts.run(source, output, count, seed)


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
@_stage(*_cell, _output, _device)
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
        _settings(dataset, settings, method),
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
@_stage(*_cell)
@click.option("--vary", multiple=True, required=True, help="<key>=<value>,<value>,…; every combination is tried.")
@_device
def tune(
    dataset: str,
    settings: str | None,
    model: Path,
    method: str,
    bits: str,
    seed: int,
    calibration_file: Path,
    reconstruction_file: Path | None,
    vary: tuple[str, ...],
    device: str,
) -> None:
    """Finetune a cell with every combination of settings; print their losses on calibration data not seen."""
    from quest import tuning

    varied = dict(map(tuning.parse, vary))
    done = tuning.trials(
        _settings(dataset, settings, method),
        model,
        method,
        config.Bits.parse(bits),
        seed,
        calibration_file,
        reconstruction_file,
        varied,
        device,
    )
    click.echo(tuning.markdown(list(done)))


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
@click.argument("table")
@click.argument("dataset")
@click.argument("metrics", type=FILE, nargs=-1)
@click.option("--published", "published_file", type=FILE, default=Path("config/published.yaml"), show_default=True)
@click.option("--output", type=FILE, required=True, help="The table as a JSON artifact.")
@click.option("--csv", type=FILE, required=True)
@click.option("--markdown", type=FILE, required=True)
def paper(
    table: str,
    dataset: str,
    metrics: tuple[Path, ...],
    published_file: Path,
    output: Path,
    csv: Path,
    markdown: Path,
) -> None:
    """A TABLE of the papers: the METRICS of its cells on DATASET beside what was published."""
    from quest import paper, published

    model = config.load_dataset(dataset).model
    absent = "not run" if model.exists() else f"not run: the weights of {dataset} are not here ({model})"
    paper.run(
        table, dataset, published.load(published_file), metrics, absent, Path("benchmarks"), output, csv, markdown
    )


@main.command()
@click.argument("cells", nargs=-1)
@click.option(
    "--revision",
    "revisions",
    multiple=True,
    help="A commit to compare with the files that are here; or, given twice, two commits. Then CELLS defaults to all.",
)
def compare(cells: tuple[str, ...], revisions: tuple[str, ...]) -> None:
    """Print CELLS side by side, with differences from the first and their errors.

    A cell is a metrics file or its name, like digits/quest-w4a4 (all seeds) or digits/quest-w4a4-seed0.
    """
    from quest import compare

    if len(revisions) > 2:
        raise ValueError(f"--revision: given {len(revisions)} times; expected once or twice")
    if revisions:
        old, new = (*revisions, compare.WORKSPACE)[:2]
        click.echo(compare.revisions(old, new, cells))
    else:
        click.echo(compare.cells(cells))


@main.command()
@click.argument("tables", type=FILE, nargs=-1)
@click.option("--paper", "papers", type=FILE, multiple=True, help="Table of the papers, from `quest paper`.")
@click.option("--figure", "figure_files", type=FILE, multiple=True, help="Pictures to attach.")
@click.option("--output", type=FILE, help="Record of the MLflow runs that were written.")
def track(
    tables: tuple[Path, ...], papers: tuple[Path, ...], figure_files: tuple[Path, ...], output: Path | None
) -> None:
    """Log every row of TABLES to MLflow; a rerun updates its run instead of adding one."""
    from quest import tracking

    tracking.run(tables, figure_files, output, papers)


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(port: int) -> None:
    """Fill MLflow from the tables in results/ and open its page on loopback."""
    from quest import tracking

    tracking.ui(port)


@main.group()
def bench() -> None:
    """Measure speed and memory."""


@bench.command("stages")
def bench_stages() -> None:
    """Print the seconds of each stage of the last run (from Snakemake's benchmark files)."""
    from quest.benchmarks import stages

    click.echo(stages.stages(Path("benchmarks")))


_network = click.Choice(["imagenet", "bedrooms"])


@bench.command("weights")
@click.option("--network", type=_network, default="bedrooms", show_default=True, help="Which LDM-4 U-Net.")
@click.option("--bits", type=click.IntRange(2, 8), default=4, show_default=True)
@_device
def bench_weights(network: str, bits: int, device: str) -> None:
    """Time the search for the weight scales of a U-Net of the paper, random weights, at its real size."""
    from quest.benchmarks import weights
    from quest.device import resolve

    click.echo(weights.run(network, bits, resolve(device)))


@bench.command("reconstruction")
@click.option(
    "--network", "networks", type=_network, multiple=True, default=("imagenet", "bedrooms"), show_default=True
)
@click.option("--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Steps of each kind.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=50, show_default=True, help="Cut the published batches down to this."
)
@_device
def bench_reconstruction(networks: tuple[str, ...], iterations: int, batch: int, device: str) -> None:
    """Time optimisation steps on the U-Nets of the paper, random weights, beside the published code's."""
    from quest.benchmarks import training
    from quest.device import resolve

    click.echo(training.run(networks, iterations, batch, resolve(device)))


@bench.command("metrics")
@click.option("--images", type=click.IntRange(min=64), default=512, show_default=True, help="Images of 256×256.")
@click.option("--rows", type=click.IntRange(min=2050), default=10_000, show_default=True, help="Rows of features.")
def bench_metrics(images: int, rows: int) -> None:
    """Time feature extraction, FID statistics and FID beside torchmetrics and torch-fidelity, where installed."""
    from quest.benchmarks import metrics

    click.echo(metrics.run(images, rows))


@bench.command("memory")
@click.option("--images", type=click.IntRange(min=100), default=50_000, show_default=True, help="Images of 256×256.")
@click.option("--shard", type=click.IntRange(min=1), default=1_000, show_default=True, help="Images of one file.")
@_device
def bench_memory(images: int, shard: int, device: str) -> None:
    """Measure random images, shard by shard, by all metrics, and print the peak memory of the process."""
    from quest.benchmarks import memory
    from quest.device import resolve

    click.echo(memory.run(images, shard, resolve(device)))


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


@bench.command("embedded")
@_stage(
    click.option("--images", type=click.IntRange(min=240), default=1_000, show_default=True, help="Images to draw."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of their noise."),
    click.option("--grid", type=FILE, help="PNG of the first 64 of them."),
    _device,
)
def bench_embedded(dataset: str, settings: str | None, images: int, seed: int, grid: Path | None, device: str) -> None:
    """How good the full-precision model of DATASET is, one of shapes, and its first stage, extractor and CLIP model."""
    from quest.metrics import quality

    click.echo(quality.run(_settings(dataset, settings), images, seed, grid, device))


@main.group("shapes")
def shapes_group() -> None:
    """Pictures and prompts of the embedded datasets that a program draws."""


@shapes_group.command("prompts")
@click.option("--number", type=click.IntRange(min=1), default=1_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--output", type=FILE, default=Path("config/prompts/shapes.txt"), show_default=True)
def shapes_prompts(number: int, seed: int, output: Path) -> None:
    """Write captions drawn at random, one a line."""
    from quest.models import shapes

    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, "".join(f"{caption}\n" for caption in shapes.captions(number, seed)).encode())


@shapes_group.command("picture")
@click.option("--number", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--output", type=FILE, default=Path("docs/images/shapes.png"), show_default=True)
def shapes_picture(number: int, output: Path) -> None:
    """Show the first pictures of the reference."""
    from quest import pictures
    from quest.models.embedded import real_images

    pictures.save(real_images("shapes", 32, number), output)


@main.group()
def testkit() -> None:
    """Try models of the papers' sizes with random weights."""


@testkit.command("random-checkpoint")
@click.argument("dataset")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
def testkit_random_checkpoint(dataset: str, output: Path) -> None:
    """Write random weights of the model of DATASET in its published layout."""
    from quest import testkit

    testkit.random_checkpoint(dataset, output, config.load_dataset(dataset).architecture)


@testkit.command("truesize")
@click.argument("dataset")
@click.option("--source", type=click.Path(path_type=Path), help="Weights to take; random ones without.")
@_device
def testkit_truesize(dataset: str, source: Path | None, device: str) -> None:
    """Take a model of the size of DATASET's through import, calibration, 4 bits, finetuning and sampling."""
    import tempfile

    from quest import testkit

    settings = config.load_dataset(dataset)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source is None:
            source = folder / ("source.ckpt" if settings.architecture else "source")
            testkit.random_checkpoint(dataset, source, settings.architecture)
        for stage, seconds, peak, notes in testkit.walk(
            testkit.small(settings, source, folder / "prompts.txt"), folder, device
        ):
            click.echo(f"{dataset} {stage}: {seconds:.1f} s, peak {peak:.0f} MiB {json.dumps(notes) if notes else ''}")


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
