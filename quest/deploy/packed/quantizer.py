"""How diffusers reads and writes packed networks: its quantizer interface, registered under the name "quest"."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from quest.artifacts import ArtifactError
from quest.deploy.packed import seal
from quest.deploy.packed.description import METHOD, Description, read


class _Method(StrEnum):
    """diffusers reads the ``value`` of what names a method."""

    QUEST = METHOD


class QuestConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a packed network. Raises ArtifactError for one that cannot be read."""

    def __init__(self, **content: Any):
        self.quant_method = _Method.QUEST  # type: ignore[assignment]
        self.description: Description = read({key: value for key, value in content.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """As JSON; inverse of the constructor."""
        return self.description.plain()

    def __repr__(self) -> str:
        return f"<quest {self.description.bits}, {len(self.description.layers)} layers>"


class QuestQuantizer(DiffusersQuantizer):
    """Puts packed layers into a model before its weights are loaded, and seals them when it is saved."""

    quantization_config: QuestConfig
    requires_calibration = True  # a network is packed by quest.export, not while it is loaded

    def __init__(self, quantization_config: QuestConfig, **named: Any):
        super().__init__(quantization_config, **named)
        self._own: set[str] = set()

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """float32 unless told otherwise: without a dtype, tensors would be read as what an empty model has."""
        return torch_dtype or torch.float32

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Check the files before anything is made of them. Raises ArtifactError."""
        unsafe = [file for file in checkpoint_files if Path(file).suffix != ".safetensors"]
        if unsafe:
            raise ArtifactError(f"{unsafe[0]}: found weights of another format, expected safetensors")
        seal.check(checkpoint_files, self.quantization_config.to_dict())
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, **_named: Any) -> Any:
        from quest.deploy.packed.assembly import assemble, own_tensors

        assemble(model, self.quantization_config.description)
        self._own = own_tensors(model)
        return model

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scales as whole numbers of the same bits: diffusers casts whatever is a floating-point number, and float32
        scales would arrive rounded to the model's dtype."""
        return {
            name: tensor.view(torch.int32) if name in self._own and tensor.dtype == torch.float32 else tensor
            for name, tensor in state_dict.items()
        }

    def check_if_quantized_param(
        self, model: Any, param_value: Tensor, param_name: str, state_dict: dict[str, Any], **named: Any
    ) -> bool:
        return param_name in self._own

    def check_quantized_param_shape(self, param_name: str, current_param: Any, loaded_param: Any) -> bool:  # type: ignore[override]
        found, expected = tuple(loaded_param.shape), tuple(current_param.shape)
        raise ArtifactError(f"{param_name}: found shape {found}, expected {expected}")

    def create_quantized_param(  # type: ignore[override]
        self, model: nn.Module, param: Tensor, param_name: str, device: Any, *_more: Any, **_named: Any
    ) -> None:
        place, _, name = param_name.rpartition(".")
        module = model.get_submodule(place)
        expected = getattr(module, name).dtype
        if expected == torch.float32 and param.dtype == torch.int32:
            param = param.view(torch.float32)
        if param.dtype != expected:
            raise ArtifactError(f"{param_name}: found {param.dtype}, expected {expected}")
        tensor = param.to(device)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        else:
            module._buffers[name] = tensor

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Nothing of a packed network may be missing. Raises ArtifactError."""
        if missing_keys:
            raise ArtifactError(
                f"{sorted(missing_keys)[0]}: missing from the weights, with {len(missing_keys) - 1} more; the folder "
                "is incomplete, fetch or export it again"
            )
        return missing_keys

    def _process_model_after_weight_loading(self, model: Any, **_named: Any) -> Any:
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What is saved, and its checksum for the header of the file."""
        if not safe_serialization:
            raise ValueError("save_pretrained(safe_serialization=False): packed networks are saved as safetensors only")
        return state_dict, {seal.KEY: seal.digest(state_dict, self.quantization_config.to_dict())}

    @property
    def is_serializable(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_trainable(self) -> bool:  # type: ignore[override]
        """Adapters on top of it are."""
        return True


# diffusers has no function for this.
_KINDS: list[tuple[Any, type]] = [
    (auto.AUTO_QUANTIZER_MAPPING, QuestQuantizer),
    (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, QuestConfig),
]
for _mapping, _kind in _KINDS:
    _mapping[METHOD] = _kind
