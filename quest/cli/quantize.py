"""`quest quantize`: a model of one's own, in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quest.stages import DEVICE, FILE

if TYPE_CHECKING:
    import torch


@click.command(params=[DEVICE])
@click.argument("model")
@click.option("--bits", help="Of weights and activations, from 2 to 8 each, like w4a8; default: w8a8.")
@click.option("--size", type=float, help="Of the float16 network, like 0.3: each layer gets weight bits of its own.")
@click.option("--psnr", type=float, help="To full precision, in dB, like 25: each layer gets weight bits of its own.")
@click.option("--method", help="How to quantize; default: quest.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--prompts", type=FILE, help="Of a model of texts: what it will be asked for, one a line.")
@click.option("--classes", type=int, help="Of a model of classes: the first so many; default: all.")
@click.option("--steps", type=click.IntRange(min=1), help="Sampling steps; default: the pipeline's own, or about 50.")
@click.option("--sampler", type=click.Choice(["ddim", "plms"]), help="Default: that of the pipeline.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Noise that DDIM adds; default: 0.")
@click.option(
    "--guidance", "guidance_scale", type=float, help="Default: the pipeline's own, or 7.5 of texts, 1.5 of classes."
)
@click.option("--budget", type=float, help="Minutes; what is learned is cut to them, and what was cut is said.")
@click.option("--memory", type=float, help="GiB; training computes again what does not fit, the rest is cut.")
@click.option("--architecture", type=FILE, help="Of a CompVis checkpoint (.ckpt): its hyper-parameters, YAML.")
@click.option("--scheduler", type=FILE, help="Of a U-Net alone: its scheduler_config.json.")
@click.option("--settings", "file", type=FILE, help="YAML with other defaults (docs/config.md, quest quantize).")
@click.option("--base-model", help="Hub id or name of the model, for the card.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace a pipeline that is there.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object on standard output.")
def quantize(model: str, output: Path, file: Path | None, as_json: bool, device: torch.device, **given: Any) -> None:
    """Quantize MODEL and write a folder that diffusers loads, with a card of what that cost.

    MODEL is a diffusers pipeline's folder (U-Net or transformer), that of a U-Net alone, a hub id, a CompVis
    checkpoint, or a model artifact. A command that was killed goes on where it was when it is given again. With --size
    or --psnr the weight bits of --bits are the most that a layer may have.
    """
    from quest.config.reading import read
    from quest.own import card
    from quest.own.conversion import convert

    changes = {} if file is None else read(file) or {}
    if not isinstance(changes, dict):
        raise ValueError(f"--settings: {file}: found {type(changes).__name__}; expected keys and values")
    made = convert(model, output, settings=changes, device=device, **given)
    click.echo(json.dumps(made.report, indent=1) if as_json else card.summary(made.report))
