"""A set of images of one's own: a folder of files, or a batch of ADM's layout (.npz), read a part at a time.

A folder is looked through before anything is computed: every file is decoded once, so that what is told of it, its
number of images and its sha256 are those of all of it, and all that stands against measuring it is said at once.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from quest.artifacts import ArtifactError
from quest.metrics import adm
from quest.metrics.extractor import Extractor
from quest.metrics.own.decoding import BROKEN, COLOUR, DONE, FORMATS, GREYSCALE, REMEDY, THREE_EQUAL, Refused, decode
from quest.metrics.reference import CHUNK, READ
from quest.metrics.statistics import Gaussian

Size = tuple[int, int]
"""Height and width."""

OTHER_SIZE, OTHER_FILES, SUBFOLDERS = "of another size", "other files", "subfolders"
_KEPT = "each resized from its own size"
_PART_BYTES = 256 * 2**20  # of images in memory at once
_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Reading:
    """What is done with files that are not like the others.

    other_sizes: what is done with images of another size: refuse them, skip them, or keep them, each to be resized by
    the extractor from its own size. background: what shows through transparent pixels; None refuses those.
    skip_broken: whether unreadable files are left out; else they are refused.
    """

    other_sizes: Literal["refuse", "skip", "keep"] = "refuse"
    background: tuple[int, int, int] | None = None
    skip_broken: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that is told of some images: what was done with them, how many they are, their names if any."""

    done: str
    count: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet(ABC):
    """Images (C, H, W) uint8 in an order that stays.

    size: of each image; None where they differ. channels: 1 or 3. sha256: of all that was read. found: what is told of
    them. names: of the files, in order; none in a batch.
    """

    path: Path
    count: int
    size: Size | None
    channels: int
    sha256: str
    found: dict[str, Finding]
    names: tuple[str, ...]

    @abstractmethod
    def parts(self) -> Iterator[Tensor]:
        """All images in order, (n, C, H, W) uint8. Raises ArtifactError for files that are others than before."""


@dataclass(frozen=True)
class Folder(ImageSet):
    """PNG, JPEG and WebP files of a folder and its subfolders, ordered by their paths.

    sha256: of what `sha256sum` prints for the files that are measured: their paths in the folder, in order.
    """

    digests: tuple[str, ...]
    background: tuple[int, int, int] | None

    def parts(self) -> Iterator[Tensor]:
        largest = _PART_BYTES // (self.channels * np.prod(self.size)).item() if self.size else READ
        length = max(1, min(CHUNK, largest))
        with ThreadPoolExecutor() as pool, _progress(self) as progress:
            for first in range(0, self.count, length):
                run: list[NDArray[np.uint8]] = []
                for pixels in pool.map(self._pixels, range(first, min(first + length, self.count))):
                    if run and run[0].shape != pixels.shape:
                        yield _stacked(run, progress)
                        run = []
                    run.append(pixels)
                yield _stacked(run, progress)

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        file = self.path / self.names[number]
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.digests[number]:
            raise ArtifactError(f"{file}: changed while the folder was measured; run again")
        return decode(data, self.channels, self.background).pixels


@dataclass(frozen=True)
class Batch(ImageSet):
    """The images of a batch of ADM's layout. sha256: of the file. statistics: of a larger set, if it has any."""

    batch: adm.Batch

    @property
    def statistics(self) -> dict[str, Gaussian] | None:
        return self.batch.statistics

    def parts(self) -> Iterator[Tensor]:
        with _progress(self) as progress:
            for images in self.batch.images(READ):
                if images.shape[1] > self.channels and (images != images[:, :1]).any():
                    raise ValueError(f"{self.path}: images {COLOUR}; {REMEDY[COLOUR]}")
                yield images[:, :1].expand(-1, self.channels, -1, -1) if self._differs else images
                progress.update(len(images))

    @property
    def _differs(self) -> bool:
        return self.batch.shape[3] != self.channels


def open_images(path: Path, channels: int, reading: Reading, size: Size | None = None) -> ImageSet:
    """The images of a folder or an .npz file, with ``channels`` 1 or 3.

    size: what every image should have; by default that of most. Raises ValueError, naming every file that stands
    against it, and ArtifactError for a batch that cannot be read.
    """
    if path.is_dir():
        return _open_folder(path, channels, reading, size)
    if path.suffix == ".npz" and path.is_file():
        return _open_batch(path, channels, reading, size)
    found = "a file that is no .npz" if path.is_file() else "no such folder or file"
    raise ValueError(f"{path}: {found}; expected a folder of PNG, JPEG or WebP files, or an .npz with images (arr_0)")


def open_for(extractor: Extractor, path: Path, reading: Reading, size: Size | None = None) -> ImageSet:
    """`open_images` for an extractor. Raises ValueError where images of several sizes are kept that it cannot take."""
    if reading.other_sizes == "keep" and extractor.resize == "none":
        raise ValueError(f"--other-sizes keep: extractor {extractor.name} does not resize; skip them, or resize first")
    return open_images(path, extractor.channels, reading, size)


def written(size: Size) -> str:
    """Like 64×48, the height first."""
    return f"{size[0]}×{size[1]}"


def listing(names: Iterable[str], most: int = _NAMED) -> str:
    """The first of ``names``, and how many more."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(_shown, names[:most])) + more


def _shown(name: str) -> str:
    """The name of a file as text, whatever its bytes are."""
    return os.fsencode(name).decode(errors="replace")


class _Look(NamedTuple):
    """What looking at a file gave: its size and what is told of it, or why it is refused."""

    digest: str
    size: Size | None
    told: tuple[str, ...] = ()
    refused: str | None = None
    detail: str = ""


def _open_folder(path: Path, channels: int, reading: Reading, size: Size | None) -> Folder:
    names, others, subfolders = _listed(path)
    if not names:
        seen = f"; it has {listing(others)}" if others else ""
        raise ValueError(f"{path}: no image in it or its subfolders; expected PNG, JPEG or WebP files{seen}")
    looks = _look_through(path, names, channels, reading.background)
    chosen = {name: each for name, each in looks.items() if each.size}
    common = size or next(iter(Counter(each.size for each in chosen.values()).most_common(1)), (None,))[0]
    odd = [f"{name} ({written(each.size)})" for name, each in chosen.items() if each.size and each.size != common]
    refused: dict[str, list[str]] = {}  # reason to names
    for name, each in looks.items():
        if each.refused:
            refused.setdefault(each.refused, []).append(f"{name} ({each.detail})" if each.detail else name)
    broken = refused.pop(BROKEN, []) if reading.skip_broken else []
    _require_measurable(path, len(names), refused, odd if reading.other_sizes == "refuse" else [], common, size)
    if reading.other_sizes == "skip":
        chosen = {name: each for name, each in chosen.items() if each.size == common}
    if not chosen:
        raise ValueError(f"{path}: all of its {len(names)} images are left out: {listing(broken + odd)}")
    told = {what: [name for name, each in chosen.items() if what in each.told] for what in DONE}
    found = {
        **{what: (DONE[what], files) for what, files in told.items()},
        OTHER_SIZE: (_KEPT if reading.other_sizes == "keep" else "left out", odd),
        BROKEN: ("left out", broken),
        OTHER_FILES: ("not read", others),
        SUBFOLDERS: ("read too", subfolders),
    }
    sizes = {each.size for each in chosen.values()}
    lines = "".join(f"{each.digest}  {name}\n" for name, each in chosen.items())
    return Folder(
        path,
        len(chosen),
        sizes.pop() if len(sizes) == 1 else None,
        channels,
        hashlib.sha256(os.fsencode(lines)).hexdigest(),
        {what: Finding(done, len(files), tuple(map(_shown, files))) for what, (done, files) in found.items() if files},
        tuple(chosen),
        tuple(each.digest for each in chosen.values()),
        reading.background,
    )


def _look_through(
    path: Path, names: list[str], channels: int, background: tuple[int, int, int] | None
) -> dict[str, _Look]:
    """A look at each file, several at once."""

    def look(name: str) -> _Look:
        return _look(path / name, channels, background)

    with ThreadPoolExecutor() as pool:
        bar = tqdm(pool.map(look, names), desc=f"look at {path.name}", total=len(names), unit="image", mininterval=5)
        return dict(zip(names, bar, strict=True))


def _listed(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths within ``folder``: of images, of what is not read, and of subfolders with images; each in order."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror})")

    names: list[str] = []
    others: list[str] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        here = Path(root).relative_to(folder)
        others += [f"{(here / each).as_posix()}/ (a link)" for each in folders if Path(root, each).is_symlink()]
        for each in files:
            image = Path(each).suffix.lower() in FORMATS and not each.startswith(".")
            (names if image else others).append((here / each).as_posix())
    return sorted(names), sorted(others), sorted({Path(name).parent.as_posix() for name in names} - {"."})


def _look(file: Path, channels: int, background: tuple[int, int, int] | None) -> _Look:
    try:
        data = file.read_bytes()
    except OSError as error:
        return _Look("", None, refused=BROKEN, detail=error.strerror or str(error))
    digest = hashlib.sha256(data).hexdigest()
    try:
        pixels, told = decode(data, channels, background)
    except Refused as error:
        return _Look(digest, None, refused=error.reason, detail=str(error))
    return _Look(digest, (pixels.shape[0], pixels.shape[1]), told)


def _require_measurable(
    path: Path, count: int, refused: dict[str, list[str]], odd: list[str], common: Size | None, size: Size | None
) -> None:
    """Raise ValueError with all that stands against measuring the folder, if anything does."""
    lines = [f"{len(names):,} {reason}: {listing(names)}; {REMEDY[reason]}" for reason, names in refused.items()]
    if odd and common:
        expected = f"{written(common)}, which {'is expected' if size else 'most have'}"
        lines.append(
            f"{len(odd):,} {OTHER_SIZE} than {expected}: {listing(odd)}; --other-sizes skip leaves them out, "
            "--other-sizes keep has Inception resize each from its own size"
        )
    if lines:
        raise ValueError("\n  ".join([f"{path}: not all of its {count:,} images can be measured as they are", *lines]))


def _open_batch(path: Path, channels: int, reading: Reading, size: Size | None) -> Batch:
    batch = adm.open_batch(path)
    count, height, width, present = batch.shape
    if present not in (1, 3):
        raise ValueError(f"{path}: its images have {present} channels; expected 1 or 3")
    if size and size != (height, width) and reading.other_sizes != "keep":
        raise ValueError(f"{path}: its images are {written((height, width))}, but {written(size)} is expected")
    found: dict[str, Finding] = {}
    if size and size != (height, width):
        found[OTHER_SIZE] = Finding(_KEPT, count)
    if present != channels:
        what = GREYSCALE if present < channels else THREE_EQUAL
        found[what] = Finding(DONE[what], count)
    return Batch(path, count, (height, width), channels, batch.sha256, found, (), batch)


def _progress(images: ImageSet) -> tqdm:
    return tqdm(desc=images.path.name, total=images.count, unit="image", mininterval=5)


def _stacked(run: list[NDArray[np.uint8]], progress: tqdm) -> Tensor:
    progress.update(len(run))
    height, width, channels = run[0].shape
    # Not `contiguous`, which leaves one channel its strides as they are, so that convolutions sum in another order.
    images = torch.empty(len(run), channels, height, width, dtype=torch.uint8)
    return images.copy_(torch.from_numpy(np.stack(run)).permute(0, 3, 1, 2))
