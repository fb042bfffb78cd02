"""The command that draws what there is of QuEST's figures 2 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quest.stages import DEVICE, SEED


@click.command(params=[SEED, DEVICE])
@click.argument("datasets", nargs=-1)
def spread(datasets: tuple[str, ...], seed: int, device: Any) -> None:
    """Draw QuEST's figures 2 and 5 for DATASETS, all whose models are here by default, from the files that are here.

    Of a model alone its ranges by sampling step are drawn; where a checkpoint of QuEST at the bits that are studied
    lies in results/finetune/DATASET/, also its layers before and after finetuning. Nothing is quantized or finetuned.
    """
    from quest import methods, paths
    from quest.config.reading import unknown
    from quest.config.values import Bits
    from quest.stages import analyse, protocol

    here = sorted(file.parent.name for file in Path("data/models").glob("*/denoiser.safetensors"))
    if not here:
        raise ValueError("data/models: no model; `dvc pull data/models` fetches the embedded ones")
    for dataset in datasets:
        if dataset not in here:
            raise ValueError(f"data/models: {unknown(dataset, here)} (the models that are here)")
    for dataset in datasets or here:
        settings = protocol(dataset, None)
        bits, rounding = settings.analysis.bits, methods.starts_from("quest", settings.methods.quest)
        cell = {"dataset": dataset, "method": "quest", "bits": bits, "seed": seed}
        checkpoint = Path(paths.fill(paths.CHECKPOINT, **cell))
        files = {"model": [settings.model]}
        jobs = {"ranges": dict(files)}
        if checkpoint.is_file():
            files["checkpoint"] = [checkpoint]
            if rounding is not None:
                weight_bits = Bits.parse(bits).weight
                pattern = paths.fill(paths.RECONSTRUCTION, **cell, **rounding._asdict(), weight_bits=weight_bits)
                files["reconstruction"] = [Path(pattern)] if Path(pattern).is_file() else []
            jobs |= {"distributions": files, "histograms": files}
        for study, given in jobs.items():
            name = paths.fill(paths.ANALYSIS, dataset=dataset, study=study)
            csv, png, svg = (Path(f"{name}.{ending}") for ending in ("csv", "png", "svg"))
            analyse.run(study, dataset, settings, seed, csv, png, svg, device, **given)
            click.echo(png)
        if not checkpoint.is_file():
            click.echo(f"{dataset}: no {checkpoint}, so nothing is drawn of finetuning", err=True)
