"""Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1-3): the shares of rows within the other set's balls.

A ball reaches from a row to its k-th nearest other row. Products of features find neighbours fast, but give equal rows
a distance of rounding errors; so whatever is as near to a limit as these errors is measured again by differences, which
depend on the two rows alone. Ties are exact then: an equal row is at distance 0, and what is at the radius is within.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from quest.metrics.resampling import SUBSETS, Estimate, members, standard_error
from quest.metrics.statistics import GROUPS, require_finite

_ROWS = 2040  # of a block of the matrix of distances, and of the features that are in float64 for it
_PAIRS = 16_384  # that are looked at one by one at once


class _Neighbours(NamedTuple):
    """The nearest other rows of each of N rows, k of each resampling group: squared distances and row numbers."""

    squares: Tensor  # (N, k, groups) float64
    rows: Tensor  # (N, k, groups) int64


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int, device: torch.device | str = "cpu"
) -> tuple[Estimate, Estimate]:
    """Precision and recall of features (M, D) and (N, D), with their errors from the generated ones alone.

    Precision is the share of generated rows within a ball of the real ones, ``neighbours`` being k; recall is the same
    with the roles exchanged. Distances are float64; ADM's evaluator compares half-precision squares where those do not
    overflow. Raises ValueError for NaN or infinity, and when a set has no ``neighbours`` other rows.
    """
    for name, rows in (("reference images", real), ("images", generated)):
        if rows.ndim != 2 or len(rows) <= neighbours:
            raise ValueError(f"evaluation.neighbours is {neighbours}, which needs more than the {len(rows)} {name}")
        require_finite(rows)
    real, generated = real.to(device), generated.to(device)
    real_radii = _radii(real, _nearest(real, neighbours, 1))
    nearest = _nearest(generated, neighbours, GROUPS)
    radii, parts = _radii(generated, nearest), members(len(generated)).to(device)
    part_radii = _part_radii(nearest, parts)
    del nearest
    in_real = torch.zeros(len(generated), dtype=torch.bool, device=device)
    in_generated = torch.zeros(len(real), dtype=torch.bool, device=device)
    in_part = torch.zeros(len(parts), len(real), dtype=torch.bool, device=device)
    for rows in _spans(len(generated)):
        for others in _spans(len(real)):
            a, b = generated[rows], real[others]
            squares, rounding = _squares(a, b)
            in_real[rows] |= _within(squares, rounding, a, b, real_radii[None, others]).any(1)
            in_generated[others] |= _within(squares, rounding, a, b, radii[rows, None]).any(0)
            in_part[:, others] |= _within_parts(squares.sub_(rounding), part_radii[:, rows])
    precision, recall = in_real.double().mean().item(), in_generated.double().mean().item()
    counts = parts.sum(1)
    if counts.min() <= neighbours:
        return Estimate(precision, None), Estimate(recall, None)
    precisions = parts.double() @ in_real.double() / counts
    return (
        Estimate(precision, standard_error(precisions.cpu())),
        Estimate(recall, standard_error(in_part.double().mean(1).cpu())),
    )


def _nearest(points: Tensor, neighbours: int, groups: int) -> _Neighbours:
    """``neighbours`` nearest other rows of points (N, D) in each group; row i is of group i mod ``groups``."""
    shape = len(points), neighbours, groups
    found = _Neighbours(
        torch.full(shape, math.inf, dtype=torch.float64, device=points.device),
        torch.zeros(shape, dtype=torch.int64, device=points.device),
    )

    def keep(rows: slice, others: slice, squares: Tensor) -> None:
        width = max(neighbours, -(-squares.shape[1] // groups)) * groups
        by_group = pad(squares, (0, width - squares.shape[1]), value=math.inf).view(len(squares), -1, groups)
        closest = by_group.topk(neighbours, 1, largest=False)
        numbers = others.start + closest.indices * groups + torch.arange(groups, device=points.device)
        merged = torch.cat([found.squares[rows], closest.values], 1).topk(neighbours, 1, largest=False)
        found.squares[rows] = merged.values
        found.rows[rows] = torch.cat([found.rows[rows], numbers], 1).gather(1, merged.indices)

    for rows in _spans(len(points)):
        for others in _spans(len(points)):
            if rows.start <= others.start:  # a distance counts for both of its rows
                squares, _ = _squares(points[rows], points[others])
                if rows == others:
                    squares.fill_diagonal_(math.inf)
                else:
                    keep(others, rows, squares.T)
                keep(rows, others, squares)
    return found


def _radii(points: Tensor, nearest: _Neighbours) -> Tensor:
    """Squared distance (N,) of each row of points to its k-th nearest other row, by differences."""
    neighbours = nearest.squares.shape[1]
    chosen = nearest.squares.flatten(1).topk(neighbours, largest=False).indices
    rows = nearest.rows.flatten(1).gather(1, chosen)
    numbers = torch.arange(len(points), device=points.device)
    return torch.stack([_differences(points, points, numbers, column) for column in rows.T]).amax(0)


def _part_radii(nearest: _Neighbours, parts: Tensor) -> Tensor:
    """Squared radii (parts, N) of the balls around the rows of each part alone; −1, which holds nothing, elsewhere."""
    neighbours = nearest.squares.shape[1]
    radii = [nearest.squares[:, :, list(part)].flatten(1).kthvalue(neighbours).values for part in SUBSETS]
    return torch.where(parts, torch.stack(radii), -1.0)


def _spans(count: int) -> Iterator[slice]:
    """Rows in consecutive blocks that begin with the first group."""
    block = max(1, _ROWS // GROUPS) * GROUPS
    return (slice(first, min(first + block, count)) for first in range(0, count, block))


def _squares(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (N, M) of rows (N, D) and (M, D) by products, float64, and a bound of their rounding errors."""
    points, others = points.double(), others.double()
    sizes = points.square().sum(1)[:, None] + others.square().sum(1)
    bound = sizes * (2 * points.shape[1] * torch.finfo(torch.float64).eps)
    return sizes.addmm_(points, others.T, alpha=-2), bound


def _differences(points: Tensor, others: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Squared distances (n,) of the pairs points[rows], others[columns], by differences in float64."""
    pairs = zip(rows.split(_ROWS), columns.split(_ROWS), strict=True)
    return torch.cat([(points[i].double() - others[j].double()).square_().sum(1) for i, j in pairs])


def _within(squares: Tensor, rounding: Tensor, points: Tensor, others: Tensor, radii: Tensor) -> Tensor:
    """Which of ``squares`` (N, M) are at most ``radii`` (N, 1) or (1, M); where it is close, by differences."""
    inside = squares <= radii
    rows, columns = ((squares - radii).abs_() <= rounding).nonzero(as_tuple=True)
    if len(rows):
        limits = radii.expand_as(squares)[rows, columns]
        inside[rows, columns] = _differences(points, others, rows, columns) <= limits
    return inside


def _within_parts(squares: Tensor, radii: Tensor) -> Tensor:
    """Which columns (parts, M) of ``squares`` (N, M) are within any of the balls of ``radii`` (parts, N)."""
    covered = torch.zeros(len(radii), squares.shape[1], dtype=torch.bool, device=squares.device)
    rows, columns = (squares <= radii.amax(0)[:, None]).nonzero(as_tuple=True)
    for i, j in zip(rows.split(_PAIRS), columns.split(_PAIRS), strict=True):
        part, pair = (squares[i, j] <= radii[:, i]).nonzero(as_tuple=True)
        covered[part, j[pair]] = True
    return covered
