"""`quest reference` and `quest measure` for images of one's own: folders and .npz files instead of a dataset's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quest.stages import DEVICE, FILE

if TYPE_CHECKING:
    import torch

    from quest.metrics.extractor import Extractor
    from quest.metrics.own.images import Finding, Reading
    from quest.metrics.own.reference import Known

INCEPTION = "inception-fid"
_IMAGES = click.Path(path_type=Path)


def _reading(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of how images are read."""
    for option in reversed(
        (
            click.option(
                "--extractor",
                type=FILE,
                help="An extractor artifact, Inception's weights (.pth), or inception-fid for those in torch.hub's "
                "cache.",
            ),
            click.option(
                "--resize",
                type=click.Choice(["adm", "pytorch-fid", "clean-fid"]),
                help="Whose way to Inception's 299×299; default: that of the reference, or else adm, the papers'.",
            ),
            click.option(
                "--other-sizes",
                type=click.Choice(["refuse", "skip", "keep"]),
                default="refuse",
                show_default=True,
                help="What is done with images of another size; keep: each is resized by itself.",
            ),
            click.option("--background", help="Colour behind transparent pixels, like white; else they are refused."),
            click.option("--skip-broken", is_flag=True, help="Leave unreadable files out; else they are refused."),
        )
    ):
        command = option(command)
    return command


@click.command(params=[DEVICE])
@click.argument("images", type=_IMAGES, metavar="DIR|FILE.npz")
@click.option("--name", help="What results call it; default: the name of the folder or file.")
@click.option("--output", type=FILE, help="File to write; default: NAME.safetensors.")
@click.option("--size", help="Height and width of every image, like 256 or 64x48; default: those of most.")
@_reading
@click.option("--force", is_flag=True, help="Replace the output.")
@click.option("--json", "as_json", is_flag=True, help="For programs: all that is told, with every name.")
def reference(
    images: Path,
    name: str | None,
    output: Path | None,
    size: str | None,
    extractor: Path | None,
    resize: str | None,
    force: bool,
    as_json: bool,
    device: torch.device,
    **reading: Any,
) -> None:
    """Make a reference of images of your own, or of published statistics, for `quest measure`.

    A folder of PNG, JPEG and WebP files with its subfolders, or an .npz with images (arr_0) or statistics (mu, sigma).
    For the real images of a dataset of config/datasets, as in a run: `quest reference DATASET --help`.
    """
    from quest.metrics.extractor import load_extractor
    from quest.metrics.own import reference as references
    from quest.metrics.own.resizing import RESIZE, resized
    from quest.report import measurement

    name = name or (images.resolve().name if images.is_dir() else images.stem)
    output = output or Path(f"{name}.safetensors")
    if output.exists() and not force:
        raise ValueError(f"{output}: is there already; --force replaces it, --output names another file")
    how, expected = _how(**reading), None if size is None else _size(size)
    network = resized(load_extractor(extractor or Path(INCEPTION), device), resize and RESIZE[resize])
    manifest, found = references.write(output, images, name, network, how, expected, resize is not None)
    told = {"name": name, "output": str(output), "sha256": manifest.sha256, **manifest.settings, **manifest.notes}
    told["found"], told["images_sha256"] = _plain(found), manifest.inputs["images"]
    if as_json:
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    count = "statistics without images" if told["images"] is None else f"{told['images']:,} images"
    click.echo(
        f"{output}: {name}, {count}{_of_size(told['image_size'])}, sha256 {told['images_sha256'][:12]}…; "
        f"features of {told['extractor']}, resize {told['resize']}"
    )
    for line in measurement.findings(told["found"]):
        click.echo(f"  {line}")


@click.command(params=[DEVICE])
@click.argument("images", type=_IMAGES, metavar="DIR|FILE.npz")
@click.option("--reference", "reference_file", type=FILE, help="What `quest reference` wrote, or a run's reference.")
@click.option("--against", type=_IMAGES, help="Images with the same names, for PSNR and MSE.")
@_reading
@click.option("--inception-split-size", type=click.IntRange(min=1), help="Images of a group of IS; default: 5000.")
@click.option("--kid-block-size", type=click.IntRange(min=2), help="Images of a block of KID; default: up to 1000.")
@click.option("--neighbours", type=click.IntRange(min=1), help="k of precision and recall; default: 3.")
@click.option("--output", type=FILE, help="Write the numbers to this file too.")
@click.option("--json", "as_json", is_flag=True, help="For programs: every number, to the last digit.")
def measure(
    images: Path,
    reference_file: Path | None,
    against: Path | None,
    extractor: Path | None,
    resize: str | None,
    inception_split_size: int | None,
    kid_block_size: int | None,
    neighbours: int | None,
    output: Path | None,
    as_json: bool,
    device: torch.device,
    **reading: Any,
) -> None:
    """Measure images of your own against a reference, with standard errors, or image by image against others.

    A folder of PNG, JPEG and WebP files with its subfolders, or an .npz with images (arr_0). The protocol is that of a
    run, whose cells are measured by: `quest measure DATASET --help`.
    """
    from quest.artifacts import Manifest, save_json
    from quest.metrics.own import images as sets
    from quest.metrics.own import measurement as metrics
    from quest.metrics.own import reference as references
    from quest.report import measurement

    if reference_file is None and against is None:
        raise ValueError("nothing to compare with; add --reference FILE (`quest reference` makes one) or --against DIR")
    how = _how(**reading)
    row: dict[str, Any] = {"source": str(images)}
    if reference_file is not None:
        known = references.load(reference_file)
        network = _extractor(reference_file, known, extractor, resize, device)
        own = sets.open_for(network, images, how, known.size)
        given = {
            "inception_split_size": inception_split_size,
            "kid_block_size": kid_block_size,
            "neighbours": neighbours,
        }
        settings = metrics.choices(own.count, known, **given)
        row |= metrics.measure(own, known, network, settings, device)
    else:
        own = sets.open_images(images, 3, how)
        row |= {"images": own.count, "images_sha256": own.sha256}
    row["found"] = _plain(own.found)
    if against is not None:
        targets = sets.open_images(against, own.channels, how, own.size)
        row |= {"against": str(against), **metrics.closeness(own, targets), "against_found": _plain(targets.found)}
    if output is not None:
        inputs = {key.removesuffix("_sha256"): row[key] for key in row if key.endswith("_sha256")}
        save_json(output, row, Manifest(kind="measurement", settings={"reading": asdict(how)}, inputs=inputs))
    if as_json:
        click.echo(json.dumps(row, indent=1, ensure_ascii=False))
        return
    click.echo(measurement.table(row))
    if reference_file is not None:
        click.echo(measurement.protocol(row))
    for each in ("found", "against_found"):
        for line in measurement.findings(row.get(each, {})):
            click.echo(f"  {'against: ' if each == 'against_found' else ''}{line}")


def _extractor(
    reference_file: Path, known: Known, given: Path | None, resize: str | None, device: torch.device
) -> Extractor:
    """The extractor of a reference, refused where what is given is another."""
    from quest.metrics.extractor import load_extractor
    from quest.metrics.own.reference import require_alike
    from quest.metrics.own.resizing import RESIZE, resized

    if given is None and known.real.extractor != INCEPTION:
        raise ValueError(
            f"{reference_file}: made with extractor {known.real.extractor}; name its file by --extractor, "
            "like data/models/digits/extractor.safetensors"
        )
    network = load_extractor(given or Path(INCEPTION), device)
    if network.sha256 == known.real.extractor_sha256:
        network = resized(network, RESIZE[resize] if resize else known.resize)
    require_alike(known, network, reference_file)
    return network


def _how(other_sizes: Any, background: str | None, skip_broken: bool) -> Reading:
    from quest.metrics.own.decoding import colour
    from quest.metrics.own.images import Reading

    return Reading(other_sizes, None if background is None else colour(background), skip_broken)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--size: {text!r}; expected a number of pixels, like 256, or height and width, like 64x48")
    return int(parts[0]), int(parts[-1])


def _of_size(size: Any) -> str:
    height, width = size if isinstance(size, list) else (size, size)
    return f" of {height}×{width}" if height else ""


def _plain(found: Mapping[str, Finding]) -> dict[str, Any]:
    return {what: asdict(each) for what, each in found.items()}
