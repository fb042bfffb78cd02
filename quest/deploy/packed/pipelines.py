"""The pipelines of models that diffusers has none for: latent ones of any first stage, and those of classes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

NAME, OF_CLASSES, OF_TRANSFORMERS = "QuestLatentPipeline", "QuestClassPipeline", "QuestDiTPipeline"


class QuestClassEmbedding(ModelMixin, ConfigMixin):
    """A context for cross-attention from a class: one vector each, the last of which stands for no class."""

    @register_to_config
    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(classes + 1, channels)

    def forward(self, labels: Tensor) -> Tensor:
        """labels: (n,) int64, from 0; ``classes`` is none. Returns (n, 1, channels)."""
        return self.embedding(labels).unsqueeze(1)


class QuestLatentPipeline(DiffusionPipeline):
    """Images of a latent diffusion model without condition, or of classes where it has a class embedding.

    vqvae: diffusers' VQModel or AutoencoderKL, whose scaling factor its configuration says. scheduler: any of
    diffusers' that goes by the network's prediction.
    """

    model_cpu_offload_seq = "class_embedding->unet->vqvae"
    _optional_components = ["class_embedding"]  # noqa: RUF012 (diffusers' name and kind)

    def __init__(self, unet: Any, vqvae: Any, scheduler: Any, class_embedding: Any = None):
        super().__init__()
        self.register_modules(unet=unet, vqvae=vqvae, scheduler=scheduler, class_embedding=class_embedding)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images.

        batch_size: how many, of an unconditional model. class_labels: the class of each, of one of classes.
        guidance_scale: of classifier-free guidance; 1 is without. eta: of DDIM. latents: (N, C, h, w), the noise to
        begin with. output_type: "pil", "np" (N, H, W, C) or "pt" (N, C, H, W), values in [0, 1], or "latent".
        Raises ValueError for classes that the model has not, or where it takes none.
        """
        labels = self._labels(class_labels)
        count = batch_size if labels is None else len(labels)
        x = self._begin(count, num_inference_steps, generator, latents)
        context = self._context(labels, guidance_scale, x.device)
        more = self._more(eta)
        bar: Any = self.progress_bar
        for t in bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(x, t)
            x = self.scheduler.step(self._predict(given, t, context, guidance_scale), t, x, **more).prev_sample
        images = x if output_type == "latent" else self._decoded(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # type: ignore[arg-type]

    @property
    def _network(self) -> Any:
        """What denoises."""
        return self.unet

    @property
    def _classes(self) -> int | None:
        """How many there are, beside the one behind the last that stands for none; None without a condition."""
        return None if self.class_embedding is None else self.class_embedding.config.classes

    def _begin(self, count: int, steps: int, generator: Any, latents: Tensor | None) -> Tensor:
        """The noise of ``count`` samples, as the scheduler begins with it."""
        network, device = self._network, self._execution_device
        size = network.config.sample_size
        shape = (count, network.config.in_channels, *(size if isinstance(size, list | tuple) else (size, size)))
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=network.dtype)
        self.scheduler.set_timesteps(steps)
        return latents.to(device, network.dtype) * self.scheduler.init_noise_sigma

    def _more(self, eta: float) -> dict[str, Any]:
        """What a step of this scheduler takes beside the prediction."""
        return {"eta": eta} if "eta" in inspect.signature(self.scheduler.step).parameters else {}

    def _labels(self, labels: Sequence[int] | None) -> list[int] | None:
        classes = self._classes
        if (labels is None) != (classes is None):
            what = "none, and expected one for each image" if labels is None else "some, but the model takes none"
            raise ValueError(f"class_labels: found {what}")
        if labels is None or classes is None:
            return None
        for label in labels:
            if not 0 <= label < classes:
                raise ValueError(f"class_labels: found {label}; the model has classes 0 to {classes - 1}")
        return list(labels)

    def _context(self, labels: list[int] | None, scale: float, device: Any) -> Tensor | None:
        """What the network is told of the classes: of none first, where it is guided."""
        if labels is None:
            return None
        both = labels if scale == 1 else [self._classes] * len(labels) + labels
        return self._told(torch.tensor(both, device=device))

    def _told(self, labels: Tensor) -> Tensor:
        """labels: (n,) int64."""
        return self.class_embedding(labels).to(self.unet.dtype)

    def _predict(self, x: Tensor, t: Tensor, context: Tensor | None, scale: float) -> Tensor:
        if context is None or scale == 1:
            return self._output(x, t, context)
        null, conditional = self._output(torch.cat([x, x]), t, context).chunk(2)
        return null + scale * (conditional - null)

    def _output(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """One call of the network."""
        return self.unet(x, t, **({} if context is None else {"encoder_hidden_states": context})).sample

    def _decoded(self, x: Tensor, output_type: str) -> Any:
        config = self.vqvae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and deviation is not None:
            x = x * x.new_tensor(deviation).view(-1, 1, 1) / config.scaling_factor + x.new_tensor(mean).view(-1, 1, 1)
        else:
            x = x / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self._shown(self.vqvae.decode(x.to(self.vqvae.dtype)).sample, output_type)

    def _shown(self, x: Tensor, output_type: str) -> Any:
        """Images around [-1, 1] as they were asked for."""
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays


class QuestDiTPipeline(QuestLatentPipeline):
    """Images of classes by a DiT on latents, which embeds the classes itself. diffusers' own DiTPipeline guides by
    ImageNet's classes alone: it takes the class behind the thousandth for none.

    transformer: diffusers' DiTTransformer2DModel. vqvae, scheduler, and a call: as of `QuestLatentPipeline`.
    """

    model_cpu_offload_seq = "transformer->vqvae"
    _optional_components = []  # noqa: RUF012 (diffusers' name and kind)

    def __init__(self, transformer: Any, vqvae: Any, scheduler: Any):
        DiffusionPipeline.__init__(self)
        self.register_modules(transformer=transformer, vqvae=vqvae, scheduler=scheduler)

    @property
    def _network(self) -> Any:
        return self.transformer

    @property
    def _classes(self) -> int | None:
        return self.transformer.config.num_embeds_ada_norm

    def _told(self, labels: Tensor) -> Tensor:
        return labels

    def _output(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        output = self.transformer(x, timestep=t.expand(len(x)), class_labels=context).sample
        return output[:, : x.shape[1]]  # a learned variance may follow


class QuestClassPipeline(QuestLatentPipeline):
    """Images of classes by a UNet2DModel with diffusers' own class embedding (``num_class_embeds``), which knows no
    class for none, and so no guidance. vqvae: of latents; the U-Net draws pixels without."""

    model_cpu_offload_seq = "unet->vqvae"
    _optional_components = ["vqvae"]  # noqa: RUF012 (diffusers' name and kind)

    def __init__(self, unet: Any, scheduler: Any, vqvae: Any = None):
        DiffusionPipeline.__init__(self)
        self.register_modules(unet=unet, scheduler=scheduler, vqvae=vqvae)

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        class_labels: Sequence[int],
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw an image of each class; the other arguments are those of `QuestLatentPipeline`.

        generator: of the noise to begin with and of the scheduler's own. Raises ValueError for classes that the model
        has not.
        """
        known = self.unet.config.num_class_embeds
        if strange := [label for label in class_labels if not 0 <= label < known]:
            raise ValueError(f"class_labels: found {strange[0]}; the model has classes 0 to {known - 1}")
        x = self._begin(len(class_labels), num_inference_steps, generator, latents)
        labels, more = torch.tensor(list(class_labels), device=x.device), self._more(eta)
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            more["generator"] = generator
        bar: Any = self.progress_bar
        for t in bar(self.scheduler.timesteps):
            predicted = self.unet(self.scheduler.scale_model_input(x, t), t, class_labels=labels).sample
            x = self.scheduler.step(predicted, t, x, **more).prev_sample
        images = x if output_type == "latent" else self._decoded(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # type: ignore[arg-type]

    def _decoded(self, x: Tensor, output_type: str) -> Any:
        return self._shown(x, output_type) if self.vqvae is None else super()._decoded(x, output_type)


# ``DiffusionPipeline.from_pretrained`` looks for the class of a pipeline by its name in diffusers.
for _pipeline in (QuestLatentPipeline, QuestClassPipeline, QuestDiTPipeline):
    setattr(sys.modules["diffusers"], _pipeline.__name__, _pipeline)
