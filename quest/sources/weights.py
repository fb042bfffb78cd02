"""Files of weights: which of a folder's are to be read, in what precision, and torch's files as data only."""

from __future__ import annotations

import functools
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quest.artifacts import ArtifactError

VARIANTS = (None, "fp16", "bf16")
"""What a file's name may say of its precision, the first of which is taken where there are several."""
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_WHOLE = {"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"}


class Weights(NamedTuple):
    """The weights of one network. files: one, or its shards. variant: None, or the precision in the files' names."""

    files: list[Path]
    variant: str | None

    @property
    def safe(self) -> bool:
        """Whether they are safetensors, and not torch's."""
        return self.files[0].suffix == ".safetensors"

    def dtype(self, trusted: bool = False) -> torch.dtype:
        """The least precision that holds every tensor exactly; trusted: see `read_tensors`. Raises ArtifactError."""
        found = [dtype for file in self.files for dtype in _precisions(file, trusted)]
        if not found:
            raise ArtifactError(f"{self.files[0]}: found no weights; fetch it again")
        return functools.reduce(torch.promote_types, found)


def find(place: Path, *stems: str) -> Weights:
    """The weights in the folder ``place`` by the names that diffusers and transformers give them, ``stems``.

    Sharded ones by their index; full precision before halves, safetensors before torch's own format. Raises
    ArtifactError for what is missing.
    """
    for variant in VARIANTS:
        mark = f".{variant}" if variant else ""
        for stem, suffix in ((stem, suffix) for suffix in ("safetensors", "bin") for stem in stems):
            index, file = place / f"{stem}.{suffix}.index{mark}.json", place / f"{stem}{mark}.{suffix}"
            if index.is_file():
                return Weights(_shards(index), variant)
            if file.is_file():
                return Weights([file], variant)
    raise ArtifactError(f"{place / stems[0]}.safetensors: no such file; the folder is incomplete, fetch it again")


def read_tensors(path: Path, trusted: bool = False) -> dict[str, Any]:
    """What a file of `torch.save` holds, as data only: one that would run code is refused before it does.

    trusted: its checksum is as it should be, so that it may lack one of its own, as torch's format before 1.6 does.
    Raises ArtifactError for such a file, and one that is damaged or no dict.
    """
    try:
        if zipped := zipfile.is_zipfile(path):  # torch does not check the checksums that it writes
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} has another CRC than when it was written")
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL `?([\w.]+)", str(error))
        what = f"it names {found[1]}, which is code" if found else "it is damaged, or holds more than tensors"
        raise ArtifactError(
            f"{path}: refused, and nothing in it was executed: {what}. Expected tensors and plain data; fetch the "
            "published file again"
        ) from error
    except Exception as error:  # of many kinds, by what the damaged bytes happen to be
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason}); fetch it again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: found {type(content).__name__}; expected a dict of tensors")
    if not zipped and not trusted:
        raise ArtifactError(
            f"{path}: in torch's format from before version 1.6, which has no checksum, so that damage would go "
            "unnoticed; give the published file's sha256 as source_sha256"
        )
    return content


def read_json(file: Path) -> dict[str, Any]:
    """An object of JSON. Raises ArtifactError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{file}: {error.strerror}; expected the whole folder of a diffusers pipeline, fetch it again"
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{file}: not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{file}: found {type(content).__name__}, expected an object; fetch it again")
    return content


def in_one_line(error: Exception) -> str:
    """What an error of another library says, in one line that is no page."""
    return " ".join(str(error).split())[:300]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, in its folder."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ArtifactError(f"{index}: names no files of weights; fetch it again")
    files = [index.parent / name for name in sorted(set(named.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise ArtifactError(f"{file}: no such file, but {index.name} names it; fetch the folder again")
    return files


def _precisions(file: Path, trusted: bool) -> list[torch.dtype]:
    """Of the tensors in a file that are no whole numbers. Raises ArtifactError when it cannot be read or has others."""
    if file.suffix == ".bin":
        tensors = read_tensors(file, trusted)
        return [each.dtype for each in tensors.values() if isinstance(each, Tensor) and each.is_floating_point()]
    found = []
    try:
        with safe_open(file, framework="pt") as content:
            named = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); fetch it again") from error
    for name, dtype in named.items():
        if dtype not in _DTYPES and dtype not in _WHOLE:
            raise ArtifactError(f"{file}: {name} is {dtype}; expected weights in full precision, of 16 bits or more")
        found += [_DTYPES[dtype]] if dtype in _DTYPES else []
    return found


class _ModelCheckpoint:
    """Stands in for a class of pytorch-lightning, which its checkpoints name as a key and nothing of which is used."""


# What published checkpoints hold beside tensors: a callback's class as a key, and numbers of numpy.
_HARMLESS: list[Any] = [
    (_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 named it
    multiarray.scalar,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]
