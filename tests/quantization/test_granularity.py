"""Granularities: which elements share a scale, and how scales broadcast back."""

from __future__ import annotations

import pytest
import torch

from quest.quantization.granularity import Granularity, Multiples, Offsets, PerAxis, PerGroup, PerTensor, for_activation

WEIGHT = torch.arange(2 * 6 * 2).float().view(2, 6, 2)


@pytest.mark.parametrize(
    ("granularity", "shape", "rows"),
    [
        (PerTensor(), (1, 1, 1), (1, 24)),
        (PerAxis(0), (2, 1, 1), (2, 12)),
        (PerAxis(1), (1, 6, 1), (6, 4)),
        (PerAxis(-1), (1, 1, 2), (2, 12)),
        (PerGroup(4), (2, 3, 1), (6, 4)),
        (PerGroup(12), (2, 1, 1), (2, 12)),
    ],
)
def test_rows_are_what_a_scale_covers(granularity: Granularity, shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    assert granularity.shape(WEIGHT.shape) == shape
    assert granularity.rows(WEIGHT).shape == rows
    # Dividing each row by its own maximum, by rows and by broadcasting, is the same.
    by_row = granularity.rows(WEIGHT).amax(1)
    broadcast = (granularity.view(WEIGHT) / by_row.view(shape)).view_as(WEIGHT)
    torch.testing.assert_close(granularity.rows(broadcast).amax(1), torch.ones(rows[0]))


def test_groups_are_consecutive_inputs_of_one_output() -> None:
    rows = PerGroup(4).rows(WEIGHT)
    assert rows[0].tolist() == [0, 1, 2, 3]
    assert rows[2].tolist() == [8, 9, 10, 11]
    assert rows[3].tolist() == [12, 13, 14, 15]


def test_groups_of_a_part_of_a_weight() -> None:
    part = WEIGHT[:, 2:]
    assert PerGroup(4).rows(part)[0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(("size", "shape"), [(5, (2, 6, 2)), (0, (2, 6, 2)), (4, (24,)), (24, (2, 6, 2))])
def test_group_that_does_not_fit(size: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=rf"groups of {size} does not fit shape .*found \d+ inputs .*expected a multiple"
    ):
        PerGroup(size).shape(shape)
    with pytest.raises(ValueError, match=f"groups of {size}"):
        PerGroup(size).rows(torch.zeros(shape))


@pytest.mark.parametrize("axis", [3, -4])
def test_missing_axis(axis: int) -> None:
    with pytest.raises(ValueError, match=f"per axis {axis} .* no such axis"):
        PerAxis(axis).shape((2, 6, 2))


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("per_tensor", 4, PerTensor()),
        ("per_channel", 4, PerAxis(1)),
        ("per_channel", 3, PerAxis(2)),
        ("per_channel", 2, PerAxis(1)),
        ("offsets", 4, Offsets(1)),
        ("offsets", 3, Offsets(2)),
        ("offsets", 2, PerTensor()),
        ("multiples", 4, Multiples(1)),
        ("multiples", 3, Multiples(2)),
        ("multiples", 2, Multiples(1)),
        ("per_token", 4, PerTensor()),
        ("per_token", 3, PerAxis(1)),
        ("per_token", 2, PerTensor()),
    ],
)
def test_names_of_the_configuration(name: str, ndim: int, expected: Granularity) -> None:
    assert for_activation(name, ndim) == expected


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError, match="'per_row'; expected per_tensor, offsets, multiples, per_token or per_channel"
    ):
        for_activation("per_row", 3)
