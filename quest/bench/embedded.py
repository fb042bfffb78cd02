"""How good the full-precision model of a dataset of shapes is, by pictures that the program draws anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quest.config.dataset import DatasetSettings
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditions import EVALUATION, conditions
from quest.diffusion.first_stage import FirstStage
from quest.diffusion.sampling import draw, to_uint8
from quest.embedded import shapes
from quest.metrics import distances
from quest.metrics.clip import ClipScore
from quest.metrics.extractor import Features, load_extractor
from quest.report import pictures


def run(settings: DatasetSettings, images: int, seed: int, grid: Path | None, device: torch.device) -> str:
    """A text table of measure and value. Raises ValueError for a dataset that is not of shapes.

    fid: of images of sampling ``seed`` against as many drawn ones; fid_of_real: of other drawn ones against the same;
    ratio: of the two.
    extractor_right: share of drawn pictures whose label the extractor finds. class_right, prompt_right: of images that
    it takes for what they were asked to be; size_right and so on: of each word of the prompts.
    reconstruction_psnr (dB), reconstruction_fid, reconstruction_right: of drawn pictures through the first stage; what
    it loses of small shapes no denoiser brings back. clip, clip_of_real: CLIP score, of images and of drawn pictures
    with their own captions. parameters: of the denoiser, in millions.
    """
    if settings.real_images != "shapes":
        raise ValueError(f"real_images: found {settings.real_images!r}; this measures models of 'shapes'")
    extractor, model = load_extractor(settings.extractor, device), denoisers.load(settings.model, device)
    real, labels = shapes.draw("quality/real", range(images), settings.image_size, device)
    other, other_labels = shapes.draw("quality/other", range(images), settings.image_size, device)
    generated = draw(model, model.network, settings, seed, range(images), device)
    asked = conditions(settings.condition, EVALUATION, seed, range(images))
    if grid is not None:
        pictures.save(generated[:64], grid)

    seen = extractor(real)
    distance = distances.FrechetDistance(distances.fit(seen.pooled), device)
    of_real = distance(distances.fit(extractor(other).pooled))
    features = extractor(generated)
    fid = distance(distances.fit(features.pooled))
    rows = {"parameters": sum(each.numel() for each in model.network.parameters()) / 1e6}
    rows |= {"fid": fid, "fid_of_real": of_real, "ratio": fid / of_real}
    rows["extractor_right"] = _share(_labels(seen) == labels)
    if asked is not None:
        rows |= _right(asked, _labels(features).cpu())
    if model.first_stage is not None:
        decoded = _reconstructed(model.first_stage, other)
        passed = extractor(decoded)
        error = (decoded.float() - other.cpu().float()).square().mean().item() / 255**2
        rows |= {
            "reconstruction_psnr": distances.psnr(error) or float("inf"),
            "reconstruction_fid": distance(distances.fit(passed.pooled)),
            "reconstruction_right": _share(_labels(passed) == other_labels),
        }
    if settings.evaluation.clip is not None:
        name = settings.evaluation.clip.model
        own = [shapes.CAPTIONS[label] for label in labels.tolist()]
        rows |= {"clip": _clip(name, generated, asked or [], device), "clip_of_real": _clip(name, real, own, device)}
    return "\n".join(f"{name:20} {value:9.4f}" for name, value in rows.items())


def _right(asked: list[Any], found: Tensor) -> dict[str, float]:
    """Shares of images of which the labels ``found`` (N,) are what ``asked``, classes or prompts, says."""
    if isinstance(asked[0], int):
        return {"class_right": _share(shapes.class_of(found) == torch.tensor(asked))}
    wanted = [shapes.attributes(shapes.LABEL_OF[prompt]) for prompt in asked]
    words = [shapes.attributes(label) for label in found.tolist()]
    pairs = list(zip(words, wanted, strict=True))
    shares = {"prompt_right": sum(a == b for a, b in pairs) / len(pairs)}
    for index, name in enumerate(shapes.Attributes._fields):
        shares[f"{name}_right"] = sum(a[index] == b[index] for a, b in pairs) / len(pairs)
    return shares


def _labels(features: Features) -> Tensor:
    return features.logits.argmax(1)


def _share(right: Tensor) -> float:
    return right.float().mean().item()


@torch.inference_mode()
def _reconstructed(stage: FirstStage, images: Tensor) -> Tensor:
    """Images (N, C, H, W) uint8 through the first stage and back, on the CPU."""
    parts = [to_uint8(stage.decode(stage.encode(part.float() / 127.5 - 1))) for part in images.split(256)]
    return torch.cat(parts)


def _clip(name: str, images: Tensor, prompts: list[str], device: torch.device) -> float:
    score = ClipScore(name, len(images), device)
    score.update(0, images.cpu(), prompts)
    return score.compute().value
