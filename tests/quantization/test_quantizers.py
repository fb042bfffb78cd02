"""Quantizer modules: state, sampling steps, calibration and training of sets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quest.quantization.granularity import Granularity, Multiples, PerAxis, PerGroup, PerTensor
from quest.quantization.grid import Grid, fake_quantize, search, search_multiples
from quest.quantization.quantizers import ActivationQuantizer, Split, WeightQuantizer, calibrating
from quest.quantization.rounding import Fixed
from quest.quantization.steps import Step


def make_activation(step: Step, granularity: Granularity | None = None) -> ActivationQuantizer:
    return ActivationQuantizer((3, 4, 4), Grid(4), granularity or PerTensor(), "max", step)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerGroup(9)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weight_codes_and_values_agree(granularity: Granularity, bits: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 2, 3, 3)
    quantizer = WeightQuantizer(weight, Grid(bits), granularity, "mse")
    assert set(quantizer.state_dict()) == {"scale", "zero_point"}
    up = torch.rand(quantizer.ratio(weight).shape) < 0.5
    for rounding in (quantizer.rounding, Fixed(up)):
        quantizer.rounding = rounding
        codes = quantizer.codes(weight)
        assert codes.shape == weight.shape
        assert codes.dtype == torch.int32
        view = granularity.view(codes)
        assert all(len(row.unique()) <= 2**bits for row in granularity.rows(codes))
        expected = ((view - quantizer.zero_point) * quantizer.scale).view_as(weight)
        assert torch.equal(quantizer(weight), expected)
    scale, zero_point = search(granularity.rows(weight), Grid(bits), "mse")
    assert torch.equal(quantizer.scale.flatten(), scale)
    assert torch.equal(quantizer.zero_point.flatten(), zero_point)


def test_learned_rounding_moves_codes_by_its_decisions() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 50)
    quantizer = WeightQuantizer(weight, Grid(8), PerAxis(0), "max")
    floor = (weight / quantizer.scale).floor() + quantizer.zero_point
    inside = (floor > 0) & (floor < 254)
    up = torch.rand(4, 50) > 0.5
    quantizer.rounding = Fixed(up)
    assert torch.equal(quantizer.codes(weight)[inside], (floor + up)[inside].int())
    assert "rounding.up" in quantizer.state_dict()


def test_weight_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="1 values that are NaN or infinite"):
        WeightQuantizer(torch.tensor([[1.0, float("nan")]]), Grid(4), PerAxis(0), "mse")


@pytest.mark.parametrize(("steps", "sets", "group"), [(200, 20, 10), (500, 20, 25), (20, 20, 1), (50, 25, 2)])
def test_set_selection(steps: int, sets: int, group: int) -> None:
    """The table of the released code: each set serves ``group`` consecutive steps, the noisiest first."""
    step = Step(sets, steps)
    chosen = []
    for index in range(steps):
        step.set(index)
        chosen.append(step.index)
    assert chosen == [index // group for index in range(steps)]
    assert chosen[-1] == sets - 1


def test_step_errors() -> None:
    with pytest.raises(ValueError, match="3 sets of activation scales do not divide 20 sampling steps"):
        Step(3, 20)
    step = Step(5, 20)
    with pytest.raises(ValueError, match="called before set_step"):
        _ = step.index
    for wrong in (-1, 20):
        with pytest.raises(ValueError, match=f"sampling step {wrong}; this network was calibrated for steps 0 to 19"):
            step.set(wrong)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(1)])
def test_all_state_is_there_from_construction_on(granularity: Granularity) -> None:
    quantizer = make_activation(Step(5, 20), granularity)
    shape = (5, *granularity.shape((1, 3, 4, 4)))
    state = quantizer.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "scale": shape,
        "zero_point": shape,
        "calibrated": (5,),
    }
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]


def test_state_dict_carries_everything() -> None:
    step = Step(2, 4)
    source, target = make_activation(step, PerAxis(1)), make_activation(step, PerAxis(1))
    x = torch.randn(6, 3, 4, 4)
    with calibrating(source):
        for index in (0, 2):
            step.set(index)
            source(x * (1 + index))
    target.load_state_dict(source.state_dict())
    for index in range(4):
        step.set(index)
        assert torch.equal(source(x), target(x))


def test_each_set_is_calibrated_alone() -> None:
    step = Step(2, 4)
    quantizer = make_activation(step)
    x = torch.randn(6, 3, 4, 4)
    step.set(3)
    with calibrating(nn.ModuleList([quantizer])):
        calibrated = quantizer(x)
    assert quantizer.calibrated.tolist() == [False, True]
    assert quantizer.scale[0].item() == 1
    scale, zero_point = search(x.reshape(1, -1), Grid(4), "max")
    assert quantizer.scale[1].item() == scale.item()
    assert quantizer.zero_point[1].item() == zero_point.item()
    assert torch.equal(calibrated, fake_quantize(x, scale, zero_point, Grid(4)))
    quantizer(10 * x)
    assert quantizer.scale[1].item() == scale.item(), "ranges stay as they are outside `calibrating`"


def test_calibrating_ends_on_an_error() -> None:
    quantizer = make_activation(Step(1, 1))
    with pytest.raises(ValueError, match="set the sampling step first"), calibrating(quantizer):
        quantizer(torch.zeros(1, 3, 4, 4))
    assert not quantizer.calibrating


def test_no_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="set the sampling step first"):
        make_activation(Step(2, 4))(torch.zeros(1, 3, 4, 4))


def test_a_scale_that_is_trained_is_that_of_one_set() -> None:
    step = Step(3, 3)
    quantizer = make_activation(step, PerAxis(1))
    with calibrating(quantizer):
        for index in range(3):
            step.set(index)
            quantizer(torch.randn(6, 3, 4, 4))
    before = quantizer.scale.detach().clone()
    x = torch.randn(2, 3, 4, 4)
    with quantizer.training_scale() as trained:
        assert torch.equal(trained.scale, before[0])
        with pytest.raises(ValueError, match="at set 2 of activation scales, and those of 0 are trained"):
            quantizer(x)
        step.set(0)
        quantizer(x).square().sum().backward()
        assert trained.scale.grad is not None
        assert trained.scale.grad.any()
        trained.scale.data.mul_(2)
        doubled = quantizer(x)
    assert quantizer.scale.grad is None
    assert torch.equal(quantizer.scale, before), "whoever trains it writes it back"
    assert not torch.equal(quantizer(x), doubled)
    assert list(quantizer.state_dict()) == ["scale", "zero_point", "calibrated"]


def test_split_gives_each_half_its_own_range() -> None:
    step = Step(1, 1)
    step.set(0)
    split = Split(
        ActivationQuantizer((2, 4, 4), Grid(4), PerTensor(), "max", step),
        ActivationQuantizer((3, 4, 4), Grid(4), PerTensor(), "max", step),
        2,
    )
    x = torch.randn(4, 5, 4, 4)
    x[:, 2:] *= 100
    with calibrating(split):
        output = split(x)
    assert output.shape == x.shape
    for part, half in ((output[:, :2], x[:, :2]), (output[:, 2:], x[:, 2:])):
        scale, zero_point = search(half.reshape(1, -1), Grid(4), "max")
        assert torch.equal(part, fake_quantize(half, scale, zero_point, Grid(4)))


def test_rounding_to_nearest_has_the_derivatives_of_its_definition() -> None:
    """Straight through the rounding; a clipped weight moves the scale alone."""
    torch.manual_seed(0)
    weight = torch.randn(5, 2, 3, 3)
    quantizer = WeightQuantizer(weight, Grid(3), PerAxis(0), "mse")  # clips some
    weight.requires_grad_()
    quantizer.scale.requires_grad_()
    probe = torch.randn(5, 2, 3, 3)
    found = torch.autograd.grad((quantizer(weight) * probe).sum(), [weight, quantizer.scale])
    ratio = weight / quantizer.scale
    code = torch.clamp(ratio + (ratio.round() - ratio).detach() + quantizer.zero_point, 0, 7)
    plain = (code - quantizer.zero_point) * quantizer.scale
    assert torch.equal(quantizer(weight), plain)
    for ours, expected in zip(
        found, torch.autograd.grad((plain * probe).sum(), [weight, quantizer.scale]), strict=True
    ):
        torch.testing.assert_close(ours, expected)


WIDTHS = torch.tensor([1.0, 0.3, 0.13]).view(3, 1, 1)


def with_multiples(step: Step) -> tuple[ActivationQuantizer, torch.Tensor]:
    """A quantizer whose two sets are calibrated on an input and on another, wider one, and that input."""
    torch.manual_seed(0)
    x = (torch.randn(6, 3, 4, 4) + 1) * WIDTHS
    quantizer = make_activation(step, Multiples(1))
    with calibrating(quantizer):
        for index in range(2):
            step.set(index)
            quantizer(x * (1 + index) + index)
    return quantizer, x


def test_multiples_are_state_of_every_set() -> None:
    step = Step(2, 2)
    quantizer, x = with_multiples(step)
    state = {name: tuple(tensor.shape) for name, tensor in quantizer.state_dict().items()}
    channels = (2, 1, 3, 1, 1)
    assert state == {"scale": (2, 1, 1, 1, 1), "zero_point": channels, "multiple": channels, "calibrated": (2,)}
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]
    target = make_activation(step, Multiples(1))
    target.load_state_dict(quantizer.state_dict())
    for index in range(2):
        step.set(index)
        rows = Multiples(1).rows(x * (1 + index) + index)
        scale, zero_point, multiple = (each.view(-1, 1, 1) for each in search_multiples(rows, Grid(4)))
        expected = fake_quantize(x, scale * multiple, zero_point, Grid(4))
        assert torch.equal(quantizer(x), expected)
        assert torch.equal(target(x), expected)
    assert quantizer.multiple is not None
    assert quantizer.multiple[0].flatten().tolist() == sorted(quantizer.multiple[0].flatten().tolist(), reverse=True)
    assert len(quantizer.multiple[0].unique()) == 3


def test_each_sample_has_the_multiples_of_its_step() -> None:
    step = Step(2, 2)
    quantizer, x = with_multiples(step)
    apart = []
    for index in range(2):
        step.set(index)
        apart.append(quantizer(x[index : index + 1]))
    with step.each(torch.tensor([0, 1])):
        assert torch.equal(quantizer(x[:2]), torch.cat(apart))


def test_the_gradient_of_a_shared_scale_is_that_of_its_channels_times_their_multiples() -> None:
    step = Step(2, 2)
    quantizer, x = with_multiples(step)
    step.set(1)
    weight = torch.randn_like(x)
    (quantizer(3 * x) * weight).sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.multiple is not None
    multiple = quantizer.multiple[1, 0].float()
    each = (quantizer.scale[1, 0] * multiple).detach().requires_grad_()
    (fake_quantize(3 * x, each, quantizer.zero_point[1, 0], Grid(4)) * weight).sum().backward()
    assert each.grad is not None
    assert quantizer.scale.grad[1].item() == pytest.approx((each.grad * multiple).sum().item(), rel=1e-5)
    assert quantizer.scale.grad[0].item() == 0, "the other set was not used"
    with quantizer.training_scale() as trained:
        trained.scale.data.copy_(quantizer.scale[1])
        trained.index = 1
        (quantizer(3 * x) * weight).sum().backward()
        assert trained.scale.grad is not None
        assert trained.scale.grad.item() == pytest.approx(quantizer.scale.grad[1].item())
