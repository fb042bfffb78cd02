"""The model card of a packed folder: what it is, how to load it, how it was made, and what of it is not quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from quest.deploy.packed.description import Description
from quest.deploy.quantized import QuantizedModel
from quest.diffusion.conditioners import TextEncoder
from quest.quantization.roles import is_layer


class Use(NamedTuple):
    """How a folder is drawn with. call: the arguments of its pipeline's, as code. sampler: in words. timesteps: that it
    was calibrated at. others: the parts of the pipeline that are not quantized."""

    call: str
    sampler: str
    timesteps: Sequence[float]
    others: Sequence[str]


_CALLS = {
    "text": 'prompt="{prompt}", guidance_scale={guidance}, num_inference_steps={steps}',
    "class": "class_labels=[0, 1, 2, 3], guidance_scale={guidance}, eta={eta}, num_inference_steps={steps}",
    None: "batch_size=4, eta={eta}, num_inference_steps={steps}",
}


def text(
    model: QuantizedModel,
    description: Description,
    account: Mapping[str, Any],
    base_model: str | None,
    metrics: Mapping[str, Any] | None,
    size: int,
    called: str | None = None,
    use: Use | None = None,
) -> str:
    """The card, Markdown with its header. account: the model's bit account; size: bytes of the packed weights. called:
    what the title calls the model, where ``base_model`` does not. use: where the pipeline is none that quest wrote."""
    use = use or use_of(model)
    name = base_model or f"sha256:{model.checkpoint.inputs['model']}"
    header = {
        "library_name": "diffusers",
        "tags": list(dict.fromkeys(["quest", description.method, description.bits, "quantized"])),
        "base_model": name,
        "base_model_relation": "quantized",
    }
    paragraphs = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {description.bits.upper()} of {called or name}",
        f"The denoiser of this pipeline has {account['mean_weight_bits']:.2f}-bit weights and "
        f"{account['mean_activation_bits']:.2f}-bit activations on average, and takes {size / 2**20:.2f} MiB instead "
        f"of {account['full_precision_mib']:.2f} MiB. The method is {description.method}.",
        f"```python\n{loading(use)}\n```",
        _steps(model, use),
        _made(model, use),
        _closeness(metrics),
        _unquantized(model, use),
        "Without `import quest` diffusers says `Unknown quantization type, got quest`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def use_of(model: QuantizedModel) -> Use:
    """How the pipeline is used that `quest.deploy.export` writes of a model."""
    sampler, around = model.sampler, model.around
    kind = None if around.conditioner is None else around.conditioner.kind
    values = {"guidance": sampler.guidance_scale, "eta": sampler.eta, "steps": sampler.steps, "prompt": "…"}
    words = f"{sampler.kind.upper()} with {sampler.steps} steps and η = {sampler.eta:g}"
    if sampler.guidance_scale != 1:
        words += f" and a guidance scale of {sampler.guidance_scale:g}"
    others = [] if around.first_stage is None else ["the first stage"]
    if around.conditioner is not None:
        others.append("the text encoder" if isinstance(around.conditioner, TextEncoder) else "the class embedding")
    return Use(_CALLS[kind].format(**values), words, around.sampler(sampler).timesteps.tolist(), others)


def loading(use: Use) -> str:
    """The lines of Python that load a model's folder and draw with it as it was quantized for."""
    return (
        "import quest  # lets diffusers read it; pip install quest-diffusion\n"
        "from diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("this folder")\nimages = pipeline({use.call}).images'
    )


def _steps(model: QuantizedModel, use: Use) -> str:
    recipe = model.network.recipe
    first, last = use.timesteps[0], use.timesteps[-1]
    return (
        f"Activation scales were calibrated at {recipe.steps} timesteps, {first:g} to {last:g}, in {recipe.sets} sets. "
        "The pipeline takes the set of the nearest of these timesteps by itself, whatever its scheduler and number of "
        "steps."
    )


def _made(model: QuantizedModel, use: Use) -> str:
    checkpoint = model.checkpoint
    words = (
        f"Made by quest ({checkpoint.method}, seed {checkpoint.seed}) for {use.sampler}, from the model with sha256 "
        f"`{checkpoint.inputs['model']}`."
    )
    if checkpoint.correction is not None:
        words += (
            " The mean of the correction of PTQD's sampler is part of the network; what it takes off the variance of a "
            "noisy sampler (η > 0) is not."
        )
    return words


def _closeness(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None or metrics.get("mse") is None:
        return "How close its images are to those of full precision was not measured for this card."
    psnr = "they are equal" if metrics.get("psnr") is None else f"PSNR {metrics['psnr']:.2f} dB"
    words = (
        f"Closeness to full precision, {metrics['images']:,} images from the same noise: {psnr}, mean squared error "
        f"{metrics['mse']:.2e} of values in [0, 1]."
    )
    if metrics.get("fid") is not None:
        words += f" FID {metrics['fid']:.2f} by the features of {metrics['extractor']}."
    return words


def _unquantized(model: QuantizedModel, use: Use) -> str:
    network = model.network.network
    left = [name for name, module in network.named_modules() if is_layer(module)]
    kinds = Counter(type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__)
    norms = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    words = ["biases", norms or "no norms"]
    words.append(f"{len(left)} layers ({', '.join(left[:8])}{', …' if len(left) > 8 else ''})" if left else "")
    words += use.others
    attention = "" if model.network.recipe.policy.attention else " The operands of attention are not quantized."
    return f"Not quantized: {', '.join(word for word in words if word)}.{attention}"
