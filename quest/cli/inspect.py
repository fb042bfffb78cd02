"""`quest inspect`: what would become of a model, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from quest.deploy.inspection import Inspection


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--bits", default="w4a8", show_default=True, help="Of weights and activations, from 2 to 8 each.")
@click.option("--method", default="quest", show_default=True, help="Whose choice of layers and scales.")
@click.option("--role", "roles", multiple=True, help="<pattern>=<role>, for layers that are not known; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def inspect(model: Path, bits: str, method: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Print what of MODEL would be quantized, to which bits and which size, and what not, and why.

    MODEL is the folder of a diffusers pipeline or of one of its networks, or a model artifact; of a folder that is
    packed already, what it is. No weight is read.
    """
    from quest.deploy import inspection
    from quest.deploy.packed import inspection as of_packed

    if wrong := [role for role in roles if "=" not in role]:
        raise ValueError(f"--role: found {wrong[0]!r}; expected <pattern>=<role>, like '*.adapter.*=projection'")
    given = {pattern: role for pattern, _, role in (each.rpartition("=") for each in roles)}
    packed = of_packed.folder_of(model)
    found = inspection.inspect(model, bits, method, given) if packed is None else of_packed.inspect(packed)
    click.echo(json.dumps(found.plain(), indent=1) if as_json else _text(found))


def _text(found: Inspection) -> str:
    """Tables of what changes and of what stays, between a line of what it is and one of what it costs."""
    layers = [["layers", "count", "parameters", "weight", "input"]]
    for group in found.layers:
        weight = "" if group.weight_bits is None else f"{group.weight_bits} bits"
        parameters = f"{group.parameters:,}" if group.weight_bits is not None else ""
        layers.append([group.role, f"{group.count:,}", parameters, weight, f"{group.activation_bits} bits"])
    rest = [["not quantized", "count", "parameters", "why"]]
    for each in found.not_quantized:
        parameters = "" if each.parameters is None else f"{each.parameters:,}"
        rest.append([each.what, f"{each.count:,}", parameters, each.why])
    half, share = found.full_precision_mib / 2, found.mib / found.full_precision_mib
    asked = "".join(f", {key} {value}" for key, value in (found.asked or {}).items() if value is not None)
    return "\n\n".join(
        [
            f"{found.network}: {found.parameters:,} parameters, {found.method} at {found.bits}"
            + (f"; asked for{asked[1:]}" if asked else ""),
            _aligned(layers),
            _aligned(rest),
            f"size: {found.mib:,.1f} MiB with its scales, {share:.1%} of the {found.full_precision_mib:,.1f} MiB that "
            f"32 bits take ({half:,.1f} MiB at 16)\none call for one sample: {found.gbops:,.1f} × 10⁹ bit operations",
        ]
    )


def _aligned(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, numbers to the right. A library that does this comes with the workflow."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in (1, 2) else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
