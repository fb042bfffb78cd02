"""The checksum of a packed network: kept in the header of its safetensors file, found wrong when a byte is flipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quest.artifacts import ArtifactError

KEY = "quest_sha256"
"""Name of the checksum in a file's header."""


def digest(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> str:
    """sha256 of the tensors by name, dtype, shape and bytes, and of what describes them."""
    found = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check(files: Iterable[str | Path], described: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless the files of a network are as they were written."""
    tensors: dict[str, Tensor] = {}
    said: set[str | None] = set()
    paths = [Path(file) for file in files]
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                said.add((file.metadata() or {}).get(KEY))
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(f"{path}: cannot be read ({error}); fetch or export it again") from error
    expected = digest(tensors, described)
    if said != {expected}:
        found = next(iter(said - {expected}))
        what = "it has no checksum of quest's" if found is None else f"its header says {found[:12]}…"
        raise ArtifactError(
            f"{paths[0]}: sha256 is {expected[:12]}…, but {what}; it or the config.json beside it was damaged or "
            "changed, fetch or export it again"
        )
