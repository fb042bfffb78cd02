"""How activation scales change over the sampling steps, by what the quantized values are for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer
from quest.report import drawing, tables
from quest.report.drawing import INK
from quest.studies import Row
from quest.studies.charts import distinct, start_figure, where, with_legend
from quest.studies.subject import Subject


def measure(subject: Subject) -> list[Row]:
    """A row for each checkpoint with several sets of scales, role and set; see `drift`.

    Raises ValueError when every checkpoint has one set: then nothing can change.
    """
    timesteps = subject.model.sampler(subject.settings.sampler).timesteps.tolist()
    rows = []
    for checkpoint in subject.checkpoints():
        network, step = checkpoint.network, checkpoint.network.step
        if step.sets == 1:
            continue
        for role, ratios in drift(network).items():
            rows += [
                {
                    "method": checkpoint.method,
                    "bits": str(network.recipe.bits),
                    "role": role,
                    "sites": len(ratios),
                    "set": index,
                    "first_timestep": timesteps[step.steps_of(index)[0]],
                    "last_timestep": timesteps[step.steps_of(index)[-1]],
                    "mean_ratio": of_set.mean().item(),
                    "min_ratio": of_set.min().item(),
                    "max_ratio": of_set.max().item(),
                }
                for index, of_set in enumerate(ratios.T)
            ]
    if not rows:
        raise ValueError("every checkpoint has one set of activation scales for all steps; there is no drift to show")
    return rows


def drift(network: QuantizedNetwork) -> dict[str, Tensor]:
    """By role, (sites, sets): the scale of each activation quantizer, a mean where it has many, over its mean over
    sets. Roles are those of layers, and "operand q" and so on for attention products."""
    role_of: dict[int, str] = {
        id(site): str(layer.role)
        for layer in network.layers().values()
        for site in layer.input_quantizer.modules()
        if isinstance(site, ActivationQuantizer)
    }
    by_role: dict[str, list[Tensor]] = defaultdict(list)
    for name, site in network.sites().items():
        scale = site.scale.detach().flatten(1).double().mean(1)
        by_role[role_of.get(id(site), f"operand {name.rpartition('.')[2]}")].append(scale / scale.mean())
    return {role: torch.stack(ratios).cpu() for role, ratios in by_role.items()}


def chart(dataset: str, rows: Sequence[Row]) -> Figure:
    """A panel a role; over the timesteps of each set, a line a method with the span of the sites."""
    roles, methods = distinct(rows, "role"), distinct(rows, "method")
    title = f"{dataset}: activation scales over the sampling steps, relative to their mean ({rows[0]['bits'].upper()})"
    styles = drawing.method_styles(methods)
    columns = min(4, len(roles))
    height = -(-len(roles) // columns)
    figure, panels = start_figure(title, 2.8 * columns, 1.9 * height + 0.8, height, columns, sharex=True)
    for axes, role in zip(panels, roles, strict=False):
        for method in methods:
            mine = where(rows, role=role, method=method)
            places = [(row["first_timestep"] + row["last_timestep"]) / 2 for row in mine]
            axes.fill_between(
                places,
                [row["min_ratio"] for row in mine],
                [row["max_ratio"] for row in mine],
                color=styles[method]["color"],
                alpha=0.12,
                linewidth=0,
            )
            means = [row["mean_ratio"] for row in mine]
            axes.plot(places, means, linewidth=1, markersize=3, label=tables.title(method), **styles[method])
        drawing.plain(axes, f"{role.replace('_', ' ')} ({where(rows, role=role)[0]['sites']})")
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    for axes in panels[len(roles) :]:
        axes.set_visible(False)
    panels[0].invert_xaxis()
    for axes in panels[-columns:]:
        axes.set_xlabel("timestep, noisiest first", color=INK)
    figure.supylabel("scale / its mean over sets; line: mean of the sites, band: all", size=10, color=INK)
    return with_legend(figure, panels[0])
