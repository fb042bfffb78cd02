"""Low-bit diffusion models by efficient selective finetuning (QuEST, ICCV 2025).

    model = quest.quantize(pipeline, bits="w4a4", method="quest", steps=20)
    images = model.sample(16, seed=0)
    quest.save(model, "w4a4.safetensors")
    model = quest.load("w4a4.safetensors")
    quest.export(model, "w4a4")  # a folder for DiffusionPipeline.from_pretrained
    quest.convert(pipeline, "w4a4", bits="w4a4", budget=30)  # all of it, with a card of what it cost

Importing this costs nothing: what it offers is imported when it is used. It lets diffusers load exported folders.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from quest.deploy import registration

# PyTorch's threads wait awake for each other, each on a core of its own. Where another program needs that core, a small
# network took many times as long; so they sleep sooner, after some 10 µs. Read when PyTorch is imported; what is set
# already stays.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from quest.artifacts import ArtifactError
    from quest.config.learning import CalibrationSettings, ReconstructionSettings
    from quest.config.quantizer import QuantizerSettings
    from quest.config.sampling import SamplerSettings
    from quest.config.values import ConfigError
    from quest.deploy.export import export
    from quest.deploy.kernels import use_kernels
    from quest.deploy.quantize import quantize
    from quest.deploy.quantized import QuantizedModel, load, save
    from quest.own.conversion import convert

__all__ = [
    "ArtifactError",
    "CalibrationSettings",
    "ConfigError",
    "QuantizedModel",
    "QuantizerSettings",
    "ReconstructionSettings",
    "SamplerSettings",
    "convert",
    "export",
    "load",
    "quantize",
    "save",
    "use_kernels",
]

if not TYPE_CHECKING:
    _HOMES = {
        "ArtifactError": "quest.artifacts",
        "CalibrationSettings": "quest.config.learning",
        "ConfigError": "quest.config.values",
        "QuantizedModel": "quest.deploy.quantized",
        "QuantizerSettings": "quest.config.quantizer",
        "ReconstructionSettings": "quest.config.learning",
        "SamplerSettings": "quest.config.sampling",
        "convert": "quest.own.conversion",
        "export": "quest.deploy.export",
        "load": "quest.deploy.quantized",
        "quantize": "quest.deploy.quantize",
        "save": "quest.deploy.quantized",
        "use_kernels": "quest.deploy.kernels",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


registration.register()
