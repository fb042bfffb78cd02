"""The grid: published test vectors, level counts, the searches and the gradients."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from quest.quantization import grid as grids
from quest.quantization.granularity import Granularity, PerAxis, PerGroup, PerTensor
from quest.quantization.grid import Grid, Kind, Search, dequantize, fake_quantize, from_range, quantize, search

X = torch.tensor([[-1, -0.3, 0, 0.2, 0.55, 1.7]])
KINDS = get_args(Kind)
METHODS = get_args(Search)


def nearest(x: Tensor, grid: Grid, method: Search) -> tuple[Tensor, Tensor, Tensor]:
    scale, zero_point = search(x, grid, method)
    view = scale.unsqueeze(1), zero_point.unsqueeze(1)
    return scale, zero_point, dequantize(quantize(x, *view, grid), *view)


@pytest.mark.parametrize(
    ("kind", "method", "scale", "zero_point", "values"),
    [
        ("asymmetric", "max", 0.18, 6, [-1.08, -0.36, 0, 0.18, 0.54, 1.62]),
        ("asymmetric", "mse", 0.18, 6, [-1.08, -0.36, 0, 0.18, 0.54, 1.62]),
        ("symmetric", "max", 1.7 / 7, 0, [-0.971429, -0.242857, 0, 0.242857, 0.485714, 1.7]),
        ("legacy_symmetric", "max", 1.7 / 16, 0, [-0.95625, -0.31875, 0, 0.2125, 0.53125, 1.7]),
        ("positive", "max", 0.18, 0, [0, 0, 0, 0.18, 0.54, 1.62]),
        ("positive", "mse", 0.1122, 0, [0, 0, 0, 0.2244, 0.561, 1.683]),
    ],
)
def test_vectors_of_the_released_quantizer(
    kind: Kind, method: Search, scale: float, zero_point: int, values: list[float]
) -> None:
    found_scale, found_zero_point, found = nearest(X, Grid(4, kind), method)
    torch.testing.assert_close(found_scale, torch.tensor([scale]), atol=1e-6, rtol=0)
    assert found_zero_point.item() == zero_point
    torch.testing.assert_close(found[0], torch.tensor(values), atol=1e-6, rtol=0)


def test_symmetric_mse_is_the_best_of_the_symmetric_shrinks() -> None:
    """The released code searches an asymmetric grid here; a symmetric one is what the name says."""
    torch.manual_seed(0)
    x = torch.randn(1, 300)
    x[0, 0] = 9.0  # an outlier, so that shrinking pays
    scale, zero_point = search(x, Grid(4, "symmetric"), "mse")
    candidates = [x.abs().max() / 7 * (1 - 0.01 * i) for i in range(80)]
    errors = [((x - (x / s).round().clamp(-8, 7) * s).abs() ** 2.4).mean() for s in candidates]
    assert zero_point.item() == 0
    torch.testing.assert_close(scale[0], candidates[int(torch.stack(errors).argmin())])
    assert scale[0] < candidates[10]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "legacy_symmetric"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerAxis(1), PerGroup(8)])
@pytest.mark.parametrize("method", METHODS)
def test_b_bits_are_at_most_2_to_the_b_codes(bits: int, kind: Kind, granularity: Granularity, method: Search) -> None:
    torch.manual_seed(bits)
    x = torch.randn(6, 4, 4, 4) * 3 + 1
    grid = Grid(bits, kind)
    scale, zero_point = (
        parameter.view(granularity.shape(x.shape)) for parameter in search(granularity.rows(x), grid, method)
    )
    view = granularity.view(x)
    codes = quantize(view, scale, zero_point, grid)
    assert codes.dtype == torch.int32
    assert grid.high - grid.low + 1 == 2**bits
    assert grid.low <= int(codes.min())
    assert int(codes.max()) <= grid.high
    values = dequantize(codes, scale, zero_point)
    assert all(len(row.unique()) <= 2**bits for row in granularity.rows(values.view_as(x)))
    assert torch.equal(fake_quantize(view, scale, zero_point, grid), values)
    assert torch.equal(quantize(values, scale, zero_point, grid), codes), "values of codes lie on the grid"
    inside = (codes > grid.low) & (codes < grid.high)
    assert ((values - view).abs() <= scale / 2 + 1e-5)[inside].all()


def test_levels_are_counted_honestly() -> None:
    """The early released code had 33 levels where it said 4 bits."""
    assert [Grid(4, kind).levels for kind in KINDS] == [16, 16, 33, 16]
    assert [Grid(8, kind).levels for kind in KINDS] == [256, 256, 513, 256]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_range_always_holds_zero(kind: Kind, method: Search) -> None:
    """A padded convolution sees exact zeros, whatever the range of its input."""
    for x in (torch.linspace(1, 2, 50)[None], torch.linspace(-2, -1, 50)[None]):
        scale, zero_point = search(x, Grid(4, kind), method)
        zero = torch.zeros(1)
        assert dequantize(quantize(zero, scale, zero_point, Grid(4, kind)), scale, zero_point).item() == 0


def test_all_positive_data_is_not_clipped() -> None:
    """The released code loses the top of {0.3, 0.5, 1.7}: 1.7 becomes 1.4."""
    _, _, values = nearest(torch.tensor([[0.3, 0.5, 1.7]]), Grid(4), "max")
    assert values.max().item() == pytest.approx(1.7, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_search_of_many_groups_is_the_search_of_each(
    kind: Kind, method: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 2001) * torch.logspace(-3, 3, 7)[:, None] + torch.linspace(-1, 1, 7)[:, None]
    alone = [search(row[None], Grid(4, kind), method) for row in x]
    for chunk in (2**24, 3 * 2001, 1):
        monkeypatch.setitem(grids._CHUNK, "cpu", chunk)
        scale, zero_point = search(x, Grid(4, kind), method)
        assert torch.equal(scale, torch.cat([s for s, _ in alone]))
        assert torch.equal(zero_point, torch.cat([z for _, z in alone]))


def test_mse_beats_the_extremes() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 20_000)
    x[0, 0] = 30.0

    def error(method: Search) -> Tensor:
        return (nearest(x, Grid(4), method)[2] - x).square().mean()

    assert error("mse") < 0.7 * error("max")
    assert error("percentile") < 0.7 * error("max")


@pytest.mark.parametrize("count", [1, 2, 3, 999, 1001, 54_321])
def test_percentiles_are_numpys(count: int) -> None:
    x = np.random.default_rng(count).normal(size=(2, count)).astype(np.float32)
    found = list(grids._percentiles(torch.from_numpy(x)))
    for percentile, (low, high) in zip((0.999, 0.9999, 0.99999), found, strict=True):
        np.testing.assert_allclose(high.numpy(), np.quantile(x.astype(np.float64), percentile, axis=1), rtol=1e-5)
        np.testing.assert_allclose(low.numpy(), np.quantile(x.astype(np.float64), 1 - percentile, axis=1), rtol=1e-5)


def test_percentile_takes_the_range_of_least_squared_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 20_000).double()
    x[0, :4] = torch.tensor([60.0, -70.0, 15.0, -12.0]).double()
    errors = []
    for percentile in (0.999, 0.9999, 0.99999):
        low, high = (torch.quantile(x, q, dim=1) for q in (1 - percentile, percentile))
        scale, zero_point = from_range(low, high, Grid(4))
        errors.append((scale, (fake_quantize(x, scale, zero_point, Grid(4)) - x).square().mean()))
    scale, _ = search(x, Grid(4), "percentile")
    torch.testing.assert_close(scale, min(errors, key=lambda pair: pair[1])[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_an_error(method: Search, bad: float) -> None:
    x = torch.zeros(2, 5)
    x[1, 3] = bad
    with pytest.raises(ValueError, match="found 1 values that are NaN or infinite, expected finite numbers"):
        search(x, Grid(4), method)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_is_an_error(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="found no values"):
        search(torch.zeros(shape), Grid(4), "max")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_zero_group_has_zero_codes(kind: Kind, method: Search) -> None:
    x = torch.zeros(2, 9)
    x[1] = torch.linspace(0, 1, 9)
    grid = Grid(4, kind)
    scale, zero_point, values = nearest(x, grid, method)
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert (quantize(x, scale[:, None], zero_point[:, None], grid)[0] == 0).all()
    assert (values[0] == 0).all()


@pytest.mark.parametrize("bits", [1, 0, 17])
def test_impossible_bits(bits: int) -> None:
    with pytest.raises(ValueError, match=f"a grid of {bits} bits; expected 2 to 16"):
        Grid(bits)


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """The formula of LSQ by autograd: round with a straight-through gradient, clamp with its own."""
    ratio = x / scale
    code = torch.clamp(ratio + (ratio.round() - ratio).detach() + zero_point, grid.low, grid.high)
    return (code - zero_point) * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 5, 1, 1), (3, 1, 1, 1)])
def test_gradients_are_those_of_the_straight_through_formula(kind: Kind, bits: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(bits)
    grid = Grid(bits, kind)
    x = (torch.randn(3, 5, 4, 4) * 2).double()
    # A narrow range, so that many entries are clipped on both sides.
    scale = (torch.rand(shape).double() + 0.5) * 2 / 2**bits
    zero_point = torch.full(shape, 0.0 if kind != "asymmetric" else 2.0**bits // 3).double()
    weight = torch.randn_like(x)
    codes = quantize(x, scale, zero_point, grid)
    clipped = (codes == grid.low) | (codes == grid.high)
    assert 0.05 < clipped.double().mean() < 1

    gradients = []
    for function in (fake_quantize, straight_through):
        arguments = [tensor.clone().requires_grad_() for tensor in (x, scale, zero_point)]
        output = function(arguments[0], arguments[1], arguments[2], grid)
        gradients.append((output.detach(), *torch.autograd.grad((output * weight).sum(), arguments)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.shape == expected.shape


def test_fake_quantize_leaves_its_input_alone() -> None:
    x = torch.randn(4, 4)
    before = x.clone()
    fake_quantize(x, torch.tensor([[0.1]]), torch.tensor([[3.0]]), Grid(4))
    assert torch.equal(x, before)


def test_offsets_are_one_scale_and_the_middle_of_every_row() -> None:
    """Rows of one width around other means: on the grid of one zero point they would share 16 codes."""
    grid, spread = Grid(4), torch.linspace(-0.5, 0.5, 101)
    x = torch.stack([spread, spread + 3, spread - 7])
    scale, zero_point = grids.search_offsets(x, grid)
    assert scale.shape == (1,)
    assert zero_point.shape == (3,)
    found = fake_quantize(x, scale, zero_point.unsqueeze(1), grid)
    assert (found - x).abs().max().item() <= 1 / 15
    together = fake_quantize(x, *from_range(x.amin().view(1), x.amax().view(1), grid), grid)
    assert (found - x).square().mean() < 0.02 * (together - x).square().mean()


def test_offsets_of_nothing_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot choose a scale: found 1 values that are NaN or infinite"):
        grids.search_offsets(torch.tensor([[0.0, torch.nan]]), Grid(4))


def test_a_scale_shared_by_rows_has_the_sum_of_their_gradients() -> None:
    x, zero_point = torch.tensor([[0.3, 5.0], [2.2, -4.0]]), torch.tensor([[0.0], [2.0]])
    shared = torch.tensor([[0.5]], requires_grad=True)
    each = torch.full((2, 1), 0.5, requires_grad=True)
    for scale in (shared, each):
        fake_quantize(x, scale, zero_point, Grid(4)).square().sum().backward()
    assert shared.grad is not None
    assert each.grad is not None
    assert shared.grad.shape == (1, 1)
    assert shared.grad.item() == pytest.approx(each.grad.sum().item())


ROWS = {
    "usual": lambda x: x,
    "widths up to 1000": lambda x: x * torch.logspace(-2, 1, 12).view(-1, 1),
    "far from zero": lambda x: 0.01 * x + torch.linspace(-900, 1000, 12).view(-1, 1),
    "one far away": lambda x: x + 1e4 * torch.eye(12)[:, :1],
    "one-sided": lambda x: x.abs(),
    "constant": lambda x: torch.linspace(-5, 80, 12).view(-1, 1).expand_as(x),
    "some zero": lambda x: x * (torch.arange(12) % 2).view(-1, 1),
    "zeros": torch.zeros_like,
    "tiny": lambda x: 1e-12 * x,
    "huge": lambda x: 1e30 * x,
    "an outlier": lambda x: torch.cat([x[:, 1:], 500 * x[:, :1]], 1),
    "one element": lambda x: x[:, :1],
}


def by_multiples(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale, zero points, multiples, and x on their grid."""
    scale, zero_point, multiple = grids.search_multiples(x, grid)
    assert (scale.shape, zero_point.shape, multiple.shape) == ((1,), (len(x),), (len(x),))
    return scale, zero_point, multiple, fake_quantize(x, (scale * multiple)[:, None], zero_point[:, None], grid)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("rows", ROWS)
def test_codes_times_multiples_fit_a_signed_byte(rows: str, bits: int) -> None:
    """Every code of the grid does, so that it does not matter what comes."""
    grid = Grid(bits)
    x = ROWS[rows](torch.randn(12, 300, generator=torch.Generator().manual_seed(0)))
    scale, zero_point, multiple, found = by_multiples(x, grid)
    assert scale.item() > 0
    assert torch.equal(multiple, multiple.round())
    assert torch.equal(zero_point, zero_point.round())
    assert 1 <= multiple.min() <= multiple.max() <= grids.largest_multiple(grid)
    assert ((grid.low - zero_point) * multiple).min() >= -128
    assert ((grid.high - zero_point) * multiple).max() <= 127
    assert bool(torch.isfinite(found).all())
    if rows in ("far from zero", "constant", "one element"):
        assert (found - x).abs().max() <= x.abs().max() / 127


@pytest.mark.parametrize("constant", [-3.0, 0.0, 70.0])
def test_channels_of_one_value_keep_it(constant: float) -> None:
    x = torch.full((3, 50), constant)
    *_, found = by_multiples(x, Grid(4))
    assert (found - x).abs().max() <= abs(constant) / 127


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rows", "most"),
    [("widths up to 1000", 0.7), ("an outlier", 1.0), ("usual", 1.05), ("some zero", 1.05)],
)
def test_multiples_err_no_more_than_one_scale(rows: str, most: float, seed: int) -> None:
    """Nor much more where channels are alike, of which fewer scales are tried."""
    grid = Grid(4)
    x = ROWS[rows](torch.randn(12, 300, generator=torch.Generator().manual_seed(seed)))
    scale, zero_point = grids.search_offsets(x, grid)
    alike = (fake_quantize(x, scale, zero_point[:, None], grid) - x).square().mean()
    *_, found = by_multiples(x, grid)
    assert (found - x).square().mean() <= most * alike


@pytest.mark.parametrize("seed", range(3))
def test_multiples_err_little_more_than_scales_per_channel(seed: int) -> None:
    """Where channels are at most 8 times as wide as others; channel by channel and all together."""
    grid, generator = Grid(4), torch.Generator().manual_seed(seed)
    widths = torch.logspace(-3, 0, 32, base=2)[:, None]
    x = widths * (torch.randn(32, 2048, generator=generator) + torch.randn(32, 1, generator=generator))
    scale, zero_point = search(x, grid, "percentile")
    expected = (fake_quantize(x, scale[:, None], zero_point[:, None], grid) - x).square().mean(1)
    *_, multiple, found = by_multiples(x, grid)
    errors = (found - x).square().mean(1)
    assert errors.mean() <= 1.3 * expected.mean()
    assert bool((errors <= 4 * expected).all()), "a channel has less than twice the scale that it needs"
    assert len(multiple.unique()) > 4


def test_the_largest_multiple() -> None:
    assert [grids.largest_multiple(Grid(bits)) for bits in range(2, 7)] == [42, 18, 8, 4, 2]
    for bits in (7, 8):
        with pytest.raises(ValueError, match=rf"multiples at {bits} bits: no multiple .* expected at most 6 bits"):
            grids.search_multiples(torch.randn(2, 8), Grid(bits))


@pytest.mark.parametrize("x", [torch.tensor([[0.0, torch.nan]]), torch.zeros(3, 0)])
def test_multiples_of_nothing_finite_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"cannot choose a scale: found .* values"):
        grids.search_multiples(x, Grid(4))
