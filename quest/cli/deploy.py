"""`quest export`: quantized models as others load them."""

from __future__ import annotations

from pathlib import Path

import click

from quest.stages import FILE


@click.command()
@click.argument("checkpoint", type=FILE)
@click.option("--model", type=FILE, help="Model that it was made of; <stem>.model.safetensors beside it without.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder or file to write.")
@click.option(
    "--format", "form", type=click.Choice(["diffusers", "onnx", "comfyui"]), default="diffusers", show_default=True
)
@click.option("--base-model", help="Hub id or name of the full-precision model, for the model card.")
@click.option("--metrics", type=FILE, help="Its results/metrics/*.json, for the model card.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export(
    checkpoint: Path,
    model: Path | None,
    output: Path,
    form: str,
    base_model: str | None,
    metrics: Path | None,
    force: bool,
) -> None:
    """Write CHECKPOINT as a folder that diffusers' from_pretrained loads, or its denoiser as ONNX or for ComfyUI."""
    import quest
    from quest.artifacts import load_json
    from quest.deploy.export import weights_of

    if form != "diffusers":
        from quest.deploy import comfyui, onnx

        write = {"onnx": onnx.export_onnx, "comfyui": comfyui.export_comfyui}[form]
        written = write(quest.load(checkpoint, model, device="cpu"), output, force=force)
        click.echo(f"{written}: {written.stat().st_size / 2**20:.2f} MiB")
        return
    measured = None if metrics is None else load_json(metrics, "metrics").content
    loaded = quest.load(checkpoint, model, device="cpu")
    written = quest.export(loaded, output, base_model=base_model, metrics=measured, force=force)
    size = sum(file.stat().st_size for file in weights_of(written).parent.iterdir())
    click.echo(f"{written}: {size / 2**20:.2f} MiB of packed network; `import quest`, then from_pretrained loads it")
