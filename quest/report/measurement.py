"""What `quest reference` and `quest measure` print of images of one's own. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class _Line(NamedTuple):
    key: str
    title: str
    digits: int
    scale: float = 1.0


_LINES = (
    _Line("fid", "FID ↓", 2),
    _Line("fid_infinity", "FID∞ ↓", 2),
    _Line("sfid", "sFID ↓", 2),
    _Line("is", "IS ↑", 2),
    _Line("kid", "KID (10⁻³) ↓", 2, 1e3),
    _Line("precision", "Precision ↑", 3),
    _Line("recall", "Recall ↑", 3),
    _Line("psnr", "PSNR (dB) ↑", 2),
    _Line("mse", "MSE (10⁻³) ↓", 3, 1e3),
)
_NAMED = 3  # files that a line names


def table(row: Mapping[str, Any]) -> str:
    """The numbers of a row with their standard errors, one a line; those it has not are left out."""
    lines = [f"{'':14}{'value':>10}{'± error':>10}"]
    for key, title, digits, scale in _LINES:
        if row.get(key) is not None:
            error = row.get(f"{key}_se")
            spread = "" if error is None else f"{error * scale:.{digits}f}"
            lines.append(f"{title:14}{row[key] * scale:>10.{digits}f}{spread:>10}".rstrip())
    if row.get("mse") == 0:
        lines.append("Every image equals the other of its name: PSNR is infinite.")
    return "\n".join(lines)


def findings(found: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """A sentence for each thing that is told of a set of images: count, what, what was done, the first names."""
    for what, each in found.items():
        names = each["names"]
        more = f" and {each['count'] - _NAMED:,} more" if names and each["count"] > _NAMED else ""
        shown = f": {', '.join(names[:_NAMED])}{more}" if names else ""
        yield f"{each['count']:,} {what}, {each['done']}{shown}"


def protocol(row: Mapping[str, Any]) -> str:
    """What the numbers of a row were measured by, and why some of them are missing."""
    reference = f"{row['reference_images']:,} images" if row["reference_images"] else "an unknown number of images"
    lines = [
        f"{row['images']:,} images against {row['reference']} ({reference}, sha256 {row['reference_sha256'][:12]}…)",
        f"features of {row['extractor']}, resize {row['resize']}; IS in groups of {row['inception_split_size']:,}",
    ]
    if row["kid"] is not None:
        lines[-1] += f", KID in blocks of {row['kid_block_size']:,}, k = {row['neighbours']}"
    if row["fid_se"] is None:
        lines.append("fewer than 40 images have no standard errors")
    if row["without"]:
        lines.append(row["without"])
    return "\n".join(lines)
