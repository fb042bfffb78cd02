"""How anything is written and read: whole or not at all, as safetensors or JSON, with a manifest that is checked.

A tensor artifact is one safetensors file whose header carries the manifest; a JSON artifact is one document
``{"manifest": …, "content": …}``. The manifest's sha256 covers the manifest itself and the content, so a flipped
byte anywhere in the file is found when it is read. Manifests hold no time and no host name: equal inputs give
equal bytes, which is what DVC and Snakemake compare.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
_HEADER_KEY = "quest"
_DISK_MARGIN = 16 * 2**20  # bytes left free beside the file, so that logs and metadata still fit
_RECORDED = ("quest-diffusion", "torch", "diffusers")


class ArtifactError(ValueError):
    """A file that cannot be trusted or written: missing, corrupt, of another kind, or no room for it."""


@dataclass(frozen=True)
class Manifest:
    """How an artifact was made.

    kind: what it is ("calibration", "checkpoint", "samples", …).
    settings: the typed settings that made it, as plain JSON.
    seeds: name to seed.
    inputs: name to sha256 of the artifacts it was made from.
    notes: facts about the content (architecture, losses, bit account, …), plain JSON.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    sha256: str = ""


@dataclass(frozen=True)
class TensorArtifact:
    """A read tensor artifact: ``tensors`` by name on the CPU, and its manifest."""

    tensors: dict[str, Tensor]
    manifest: Manifest


@dataclass(frozen=True)
class JsonArtifact:
    """A read JSON artifact."""

    content: Any
    manifest: Manifest


def save_tensors(path: str | Path, tensors: dict[str, Tensor], manifest: Manifest) -> Manifest:
    """Write ``tensors`` (any device; stored contiguous, dtype kept) to the safetensors file ``path``.

    Returns the manifest as written, with versions and sha256 filled in.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    manifest = _sealed(manifest, _tensor_digest(tensors))
    write_bytes(path, save(tensors, metadata={_HEADER_KEY: _canonical(asdict(manifest))}))
    return manifest


def load_tensors(path: str | Path, kind: str) -> TensorArtifact:
    """Read a tensor artifact of the given ``kind``. Raises ArtifactError when it is missing, corrupt or of another."""
    from safetensors import SafetensorError, safe_open

    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, UnicodeDecodeError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    manifest = _parse_manifest(path, _given(path, header, kind))
    _check(path, manifest, _tensor_digest(tensors), kind)
    if header != _canonical(asdict(manifest)):
        raise _corrupt(path, "its manifest was rewritten")  # the same values in other bytes, like 1E-5 for 1e-5
    return TensorArtifact(tensors, manifest)


def read_manifest(path: str | Path, kind: str) -> Manifest:
    """The manifest of a tensor artifact of the given ``kind``, whose tensors are not read, and so not checked.

    Raises ArtifactError when it is missing, not to be read or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
    except (SafetensorError, UnicodeDecodeError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    manifest = _parse_manifest(path, _given(path, header, kind))
    _check_kind(path, manifest, kind)
    return manifest


def save_json(path: str | Path, content: Any, manifest: Manifest) -> Manifest:
    """Write ``content`` (plain JSON) with its manifest to ``path``; returns the manifest as written."""
    manifest = _sealed(manifest, _json_digest(content))
    write_bytes(path, _document(manifest, content))
    return manifest


def load_json(path: str | Path, kind: str) -> JsonArtifact:
    """Read a JSON artifact of the given ``kind``. Raises ArtifactError when it is missing, corrupt or another kind."""
    path = _existing(path)
    data = path.read_bytes()
    try:
        document = json.loads(data)
        manifest = _parse_manifest(path, json.dumps(document["manifest"]))
        content = document["content"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise _corrupt(path, f"not a JSON artifact ({error})") from error
    _check(path, manifest, _json_digest(content), kind)
    if data != _document(manifest, content):
        raise _corrupt(path, "it was rewritten")  # the same values in other bytes
    return JsonArtifact(content, manifest)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises ArtifactError, leaving nothing behind, when the disk is full."""
    with atomic(path, size=len(data)) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic(path: str | Path, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` that takes its place when the block ends well.

    size: bytes about to be written; less free space than that is an ArtifactError before anything is written.
    The block may write the temporary file by any means; on any exception, Ctrl-C included, it is removed. One that a
    killed process left is removed by the next that writes ``path``.
    """
    path = Path(path)
    partial: Path | None = None
    descriptor = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        free = shutil.disk_usage(path.parent).free
        if size and free < size + _DISK_MARGIN:
            raise ArtifactError(
                f"{path}: needs {size / 2**20:.1f} MiB and {_DISK_MARGIN / 2**20:.0f} MiB to spare, "
                f"but {free / 2**20:.1f} MiB are free there; free some space and run again"
            )
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".partial{path.suffix}")
        partial = Path(name)
        _lock(descriptor)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise ArtifactError(
            f"{path}: could not be written ({error.strerror or error}); nothing was left behind"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
            os.close(descriptor)


def listed(folder: Path, pattern: str) -> list[Path]:
    """The files in ``folder`` that match, in order; none that a process is still writing, or was killed over."""
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".")]


def plain(settings: Any) -> dict[str, Any]:
    """Typed settings (a pydantic model) as the plain JSON that a manifest holds."""
    return settings.model_dump(mode="json")


def _remove_left(path: Path) -> None:
    """Remove temporary files of ``path`` that nobody is writing."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        with contextlib.suppress(FileNotFoundError), left.open("rb") as file:
            if _lock(file.fileno()):
                left.unlink()


def _lock(descriptor: int) -> bool:
    """Hold a file until it is closed, by the end of the process at the latest. False where that cannot be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(
            f"{path}: no such file; `snakemake {path}` makes it, or `dvc pull {path}` fetches it if it was shared"
        )
    return path


def _corrupt(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: corrupt ({what}); delete it, then `dvc pull {path}` or `snakemake {path}` restores it"
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch := sys.modules.get("torch"):  # not imported for it: who computes has it
        rounded = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        found["tf32"] = "on" if rounded else "off"
    return found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _tensor_digest(tensors: dict[str, Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _document(manifest: Manifest, content: Any) -> bytes:
    """The bytes of a JSON artifact."""
    document = {"manifest": asdict(manifest), "content": content}
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _json_digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _seal(manifest: Manifest, content_digest: str) -> str:
    unsealed = asdict(replace(manifest, sha256=""))
    return hashlib.sha256((_canonical(unsealed) + content_digest).encode()).hexdigest()


def _sealed(manifest: Manifest, content_digest: str) -> Manifest:
    manifest = replace(manifest, versions=_versions())
    return replace(manifest, sha256=_seal(manifest, content_digest))


def _given(path: Path, header: str | None, kind: str) -> str:
    if header is None:
        raise ArtifactError(
            f"{path}: a safetensors file without quest's manifest; expected an artifact of kind {kind!r}"
        )
    return header


def _parse_manifest(path: Path, text: str) -> Manifest:
    try:
        fields = json.loads(text)
        version = fields["schema_version"]
        if version == SCHEMA_VERSION:
            return Manifest(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt(path, f"unreadable manifest: {error}") from error
    raise ArtifactError(
        f"{path}: written with artifact schema {version}, this quest reads {SCHEMA_VERSION}; "
        f"make it again with `snakemake {path}`"
    )


def _check(path: Path, manifest: Manifest, content_digest: str, kind: str) -> None:
    expected = _seal(manifest, content_digest)
    if manifest.sha256 != expected:
        raise _corrupt(path, f"sha256 is {expected[:12]}…, its manifest says {manifest.sha256[:12]}…")
    _check_kind(path, manifest, kind)


def _check_kind(path: Path, manifest: Manifest, kind: str) -> None:
    if manifest.kind != kind:
        raise ArtifactError(f"{path}: an artifact of kind {manifest.kind!r} where {kind!r} is expected")
