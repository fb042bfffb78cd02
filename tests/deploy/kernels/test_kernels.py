"""Every kernel against whole numbers: integers exactly, outputs closely, for odd sizes, strides and borders."""

from __future__ import annotations

import copy
import importlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quest
from quest.config.dataset import DatasetSettings
from quest.config.values import Bits
from quest.deploy import kernels
from quest.deploy.kernels import attention, cpu, instead, reference
from quest.deploy.kernels import triton as triton_kernels
from quest.deploy.kernels.integers import (
    RECIPE,
    Integers,
    common_zero_point,
    middle_zero_points,
    of_layer,
    why_not,
)
from quest.deploy.packed.assembly import TABLES, assemble, packed_layers, take_apart
from quest.deploy.packed.description import Description, LayerDescription, SiteDescription, TablesDescription
from quest.deploy.packed.layers import ActivationGrid, Packed, Tables, pack_layer
from quest.deploy.start import recipe as make_recipe
from quest.diffusion.denoiser import Denoiser
from quest.learning.calibration import Calibration
from quest.learning.finetuning import calibrate_activations
from quest.quantization import packing
from quest.quantization.attention import QuantizedAttention
from quest.quantization.granularity import PerAxis, for_activation
from quest.quantization.grid import Grid, search
from quest.quantization.layers import QuantizedLayer, Switches
from quest.quantization.network import QuantizedNetwork
from quest.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from quest.quantization.roles import Role
from quest.quantization.steps import Step

SHAPES = {  # batch, channels, height, width, outputs, kernel, stride, padding, dilation
    "3x3": (2, 32, 8, 8, 32, 3, 1, 1, 1),
    "one channel": (1, 1, 7, 5, 3, 3, 1, 1, 1),
    "odd, strided": (3, 17, 9, 6, 5, 3, 2, 1, 1),
    "1x1": (2, 40, 4, 4, 24, 1, 1, 0, 1),
    "wide border": (1, 8, 3, 3, 4, 3, 1, 2, 1),
    "dilated": (1, 20, 9, 9, 4, 3, 1, 2, 2),
    "whole rows": (3, 48, 5, 6, 20, 3, 1, 1, 1),
    "whole rows, dilated": (2, 32, 9, 7, 10, 3, 1, 2, 2),
    "whole rows, 1x1": (2, 64, 3, 5, 70, 1, 1, 0, 1),
    "one half": (1, 16, 4, 4, 8, 3, 1, 1, 1),
    "strided and dilated": (2, 5, 11, 8, 3, 3, 2, 2, 2),
    "strided 1x1": (2, 9, 5, 4, 6, 1, 2, 0, 1),
    "1x1 with a border": (2, 16, 3, 5, 6, 1, 1, 1, 1),
    "linear": (5, 33, 0, 0, 7, 0, 0, 0, 0),
}
KINDS = {"4 bits": (4, False), "8 bits": (8, False), "8 bits with a rest": (8, True)}


def layer(shape: tuple[int, ...], bits: int, rest: bool, device: str = "cpu", largest: int = 127) -> Integers:
    _, channels, _, _, outputs, kernel, stride, padding, dilation = shape
    generator = torch.Generator().manual_seed(0)
    size = (outputs, channels) if kernel == 0 else (outputs, channels, kernel, kernel)
    low, high = (-9, 6) if bits == 4 else (-largest - 1 if largest == 127 else -largest, largest)
    weight = torch.randint(low, high + 1, size, generator=generator, dtype=torch.int8)
    if bits == 4:  # 16 of a channel, more of all: each has a zero point of its own
        weight += torch.randint(-6, 7, (outputs, *(1,) * (weight.ndim - 1)), generator=generator, dtype=torch.int8)
    geometry: Any = ((stride or 1,) * 2, (padding, padding), (dilation or 1,) * 2)
    integers = Integers(
        weight,
        torch.randint(-30, 30, (outputs,), generator=generator, dtype=torch.int32) if rest else None,
        torch.rand(outputs, generator=generator) + 0.1,
        torch.randn(outputs, generator=generator),
        geometry,
        bits,
    )
    fields: dict[str, Any] = {
        key: value.to(device) if isinstance(value, Tensor) else value for key, value in vars(integers).items()
    }
    return Integers(**fields)


def codes(shape: tuple[int, ...], device: str = "cpu") -> Tensor:
    batch, channels, height, width, *_ = shape
    size = (batch, channels, height, width) if height else (batch, 3, channels)
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(1), dtype=torch.uint8).to(device)


def assert_exact(kernel: Any, shape: tuple[int, ...], integers: Integers, device: str = "cpu") -> None:
    """Integers exactly (scales of one, no bias), and outputs within float32's rounding."""
    q, one = codes(shape, device).float(), torch.ones(1, device=device)
    plain = Integers(**(vars(integers) | {"scale": torch.ones_like(integers.scale), "bias": None}))
    for zero_point in (0.0, 77.0, 255.0):
        x, z = q - zero_point, torch.full((1,), zero_point, device=device)
        found, expected = kernel.make(plain)(x, one, z), reference.sums(x, plain)
        assert float(expected.abs().max()) < 2**24, "float32 holds the sums"
        assert torch.equal(found.double(), expected)
        scaled = one * 0.037
        torch.testing.assert_close(
            kernel.make(integers)(x, scaled, z), reference.make(integers)(x, scaled, z), rtol=1e-5, atol=1e-3
        )


@pytest.mark.parametrize(("shape", "kind"), itertools.product(SHAPES, KINDS))
def test_reference_is_what_was_quantized(shape: str, kind: str) -> None:
    """Against floating-point convolution of dequantized operands, padded with real zeros."""
    integers, x = layer(SHAPES[shape], *KINDS[kind]), codes(SHAPES[shape])
    weight = integers.weight.double()
    if integers.rest is not None:
        weight = weight - integers.rest.double().view(-1, *(1,) * (weight.ndim - 1))
    weight = weight * integers.scale.double().view(-1, *(1,) * (weight.ndim - 1))
    real = (x.double() - 77) * 0.037
    assert integers.bias is not None
    bias = integers.bias.double()
    expected = (
        functional.linear(real, weight, bias)
        if integers.linear
        else functional.conv2d(real, weight, bias, *integers.geometry)
    )
    found = reference.make(integers)(x.float() - 77, torch.full((1,), 0.037), torch.full((1,), 77.0))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("shape", "kind"), itertools.product(SHAPES, KINDS))
def test_cpu(shape: str, kind: str) -> None:
    if (why := cpu.lacking(torch.device("cpu"))) is not None:
        pytest.skip(why)
    integers = layer(SHAPES[shape], *KINDS[kind])
    assert_exact(cpu, SHAPES[shape], integers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cpu_that_saturates_gets_weights_of_seven_bits(
    shape: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (why := cpu.lacking(torch.device("cpu"))) is not None:
        pytest.skip(why)
    monkeypatch.setattr(cpu, "_exact", lambda: False)
    assert_exact(cpu, SHAPES[shape], layer(SHAPES[shape], *KINDS[kind]))


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "kind"), itertools.product(SHAPES, KINDS))
def test_triton_on_a_gpu(shape: str, kind: str) -> None:
    assert triton_kernels.lacking(torch.device("cuda")) is None
    assert_exact(triton_kernels, SHAPES[shape], layer(SHAPES[shape], *KINDS[kind], device="cuda"), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("name", ["bedrooms", "imagenet"])
def test_triton_on_the_layers_of_the_papers(name: str, batch: int) -> None:
    """Every shape of layer of the two latent models, at true size: outputs within 1e-3 of exact arithmetic."""
    from quest.bench import networks

    shapes: dict[tuple[Any, ...], tuple[nn.Module, tuple[int, ...]]] = {}
    network = networks.make(name, "cuda")

    def note(module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
        assert isinstance(module.weight, Tensor)
        geometry = (getattr(module, "stride", 0), getattr(module, "padding", 0))
        shapes[(tuple(module.weight.shape), geometry, args[0].shape[1:])] = module, tuple(args[0].shape[1:])

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, *networks.SHAPE, device="cuda"), torch.zeros(1, device="cuda"))
    for module, size in shapes.values():
        assert isinstance(module.weight, Tensor)
        weight = torch.randint(-128, 128, module.weight.shape, device="cuda", dtype=torch.int8)
        geometry = ((1, 1), (0, 0), (1, 1))
        if isinstance(module, nn.Conv2d):
            geometry = (module.stride, module.padding, module.dilation)  # type: ignore[assignment]
        outputs = len(weight)
        rest = torch.randint(-30, 30, (outputs,), device="cuda", dtype=torch.int32)
        for bits, extra in ((8, None), (8, rest), (4, None)):
            values = weight if bits == 8 else weight.clamp(-8, 7)
            one = torch.ones(outputs, device="cuda")
            integers = Integers(values, extra, one, None, geometry, bits)  # type: ignore[arg-type]
            x = torch.randint(-117, 139, (batch, *size), device="cuda").float()
            z, scale = torch.full((1,), 117.0, device="cuda"), torch.full((1,), 0.02, device="cuda")
            found = triton_kernels.make(integers)(x, scale, z)[:2]
            expected = reference.make(integers)(x[:2], scale, z)
            assert float((found - expected).norm() / expected.norm()) < 1e-3, (weight.shape, geometry, size, bits)


def test_triton_in_its_interpreter(interpreted: Callable[[str], None]) -> None:
    interpreted(
        "import torch\n"
        "import test_kernels as t\n"
        "assert t.triton_kernels.lacking(torch.device('cpu')) is None\n"
        "k, copied = t.triton_kernels, []\n"
        "launch = k._launch_copied\n"
        "k._launch_copied = lambda *given: copied.append(1) or launch(*given)\n"
        "some = {'one channel': '4 bits', 'odd, strided': '8 bits with a rest', 'linear': '4 bits'}\n"
        "some['one half'] = '4 bits'\n"
        "for shape, kind in some.items():\n"
        "    t.assert_exact(k, t.SHAPES[shape], t.layer(t.SHAPES[shape], *t.KINDS[kind]))\n"
        "assert not copied\n"
        "some = {'whole rows': '4 bits', 'whole rows, dilated': '8 bits with a rest', 'whole rows, 1x1': '8 bits'}\n"
        "for shape, kind in some.items():\n"
        "    copied.clear()\n"
        "    t.assert_exact(k, t.SHAPES[shape], t.layer(t.SHAPES[shape], *t.KINDS[kind]))\n"
        "    assert len(copied) == 6, 'the copy engine fetches rows of whole units'\n"
        "for bits, width in ((8, 24), (4, 160)):\n"
        "    t.assert_attention(bits, width=width)\n"
        "integers, x = t.layer(t.SHAPES['3x3'], 8, True), t.codes(t.SHAPES['3x3']).float() - 1\n"
        "one = torch.ones(1); product = t.triton_kernels.make(integers); plain = product(x, one, one)\n"
        "added = torch.randn_like(plain)\n"
        "torch.testing.assert_close(product(x, one, one, residual=added), plain + added)\n"
        "for kind in t.MULTIPLIED:\n"
        "    t.assert_multiples(kind, 'triton')\n"
    )


def test_triton_sums_codes_over_windows(interpreted: Callable[[str], None]) -> None:
    """Wanted of 8-bit weights with a rest alone; also over a window that is not the same down and beside."""
    interpreted(
        "import test_kernels as t\n"
        "some = '3x3', 'one channel', 'strided and dilated', 'strided 1x1', '1x1 with a border', 'linear'\n"
        "for name in (*some, 'whole rows', 'whole rows, 1x1'):\n"
        "    t.assert_exact(t.triton_kernels, t.SHAPES[name], t.layer(t.SHAPES[name], 8, True))\n"
        "integers = t.layer(t.SHAPES['one channel'], 8, True)\n"
        "changed = {'weight': integers.weight[..., :2], 'geometry': ((2, 1), (1, 2), (1, 3))}\n"
        "t.assert_exact(t.triton_kernels, t.SHAPES['one channel'], t.Integers(**(vars(integers) | changed)))\n"
    )


def test_triton_reads_what_it_is_given_and_no_more(interpreted: Callable[[str], None]) -> None:
    """Numbers that do not lie one after another, as one scale that is seen as many: other numbers lie there. So the
    check of a GPU refused it where memory had been used before."""
    interpreted(
        "import torch\n"
        "import test_kernels as t\n"
        "k, ones = t.triton_kernels, torch.ones\n"
        "used = torch.full((64,), 9.0); used[0] = 1\n"
        "torch.ones = lambda *size, **named: used[:1] if size == (1,) else ones(*size, **named)\n"
        "assert k._trouble(torch.device('cpu')) is None\n"
        "torch.ones = ones\n"
        "t.assert_exact(k, t.SHAPES['3x3'], t.apart(t.layer(t.SHAPES['3x3'], 8, True)))\n"
    )


def apart(integers: Integers) -> Integers:
    """The same, of which no two numbers lie beside each other."""
    given: dict[str, Any] = dict(vars(integers))
    for name, value in given.items():
        if isinstance(value, Tensor):
            spread = value.new_full((*value.shape, 2), 99)
            spread[..., 0] = value
            given[name] = spread[..., 0]
    return Integers(**given)


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_parts_with_kernels_are_copied(
    bits: str, make_quantized: Callable[..., QuantizedNetwork], interpreted: Callable[[str], None], tmp_path: Path
) -> None:
    """A U-Net's norms, residual blocks, growing and attentions by kernels are what they are in floats, at timesteps of
    different scales; so are those of a copy, whatever becomes of what it was copied from."""
    unet, x = packed(make_quantized(bits, **MULTIPLES)), torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        expected = [unet(x, timestep).sample for timestep in (750, 0)]
    assert float((expected[0] - expected[1]).norm() / expected[1].norm()) > 0.1
    torch.save((unet, x, expected), tmp_path / "parts.pt")
    interpreted(
        "import copy, torch\n"
        "from quest.deploy import kernels\n"
        f"unet, x, expected = torch.load({str(tmp_path / 'parts.pt')!r}, weights_only=False)\n"
        "assert set(kernels.use_kernels(unet, 'triton').values()) == {'triton'}\n"
        "assert sum('forward' in part.__dict__ for part in unet.modules()) > 20\n"
        "twin = copy.deepcopy(unet)\n"
        "for tensor in (*unet.parameters(), *unet.buffers()):\n"
        "    tensor.data.zero_()\n"
        "with torch.no_grad():\n"
        "    for timestep, want in zip((750, 0), expected):\n"
        "        assert (twin(x, timestep).sample - want).norm() / want.norm() < 5e-2\n"
    )


SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
"""Bytes of shared memory that a block may have on an A100, an RTX 4090 and an H100, by compute capability."""


@pytest.mark.parametrize("chip", SHARED)
def test_triton_compiles_for_chips_that_are_not_here(chip: int) -> None:
    """Every kernel fits the shared memory of a chip, in the blocks that are chosen for large and small products."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    source: Any = importlib.import_module("quest.deploy.kernels._triton_kernel")
    types = dict.fromkeys(("scale", "zero_point", "weight_scale", "bias"), "*fp32") | {"y": "*bf16", "codes": "*i8"}
    types |= dict.fromkeys(("whole", "rest", "sums"), "*i32") | {"offset": "*u8", "residual": "*bf16"}
    types |= {"factor": "fp32"} | dict.fromkeys(("q", "k", "v"), "*fp16")
    types |= dict.fromkeys((f"{each}_scale" for each in "qkvp"), "*fp32")

    def shared(kernel: Any, fixed: dict[str, Any], **own: str) -> int:
        options = {name: fixed.pop(name) for name in ("num_warps", "num_stages")}
        signature = {
            name: "constexpr" if name in fixed else (types | own).get(name, "i32") for name in kernel.arg_names
        }
        made = compile(
            ASTSource(fn=kernel, signature=signature, constexprs=fixed),
            target=GPUTarget("cuda", chip, 32),
            options=options,
        )
        return made.metadata.shared

    most = 0
    for width in (32, 160):
        most = max(most, shared(source.attention, source.attention_block(4096, 4096, width)))
    flags = {"R": 3, "S": 3, "BIAS": True, "RESIDUAL": True}
    for narrow, rows in itertools.product((True, False), (2**18, 64)):
        flags |= {"NARROW": narrow, "REST": not narrow}
        weight = "u8" if narrow else "i8"
        most = max(most, shared(source.convolution_loaded, flags | source.loaded_block(rows, 384), weight=f"*{weight}"))
        if chip == 90:
            block = source.block(rows, 384, 384, narrow)
            inner, pixels = block["BLOCK_K"], block.pop("BLOCK_M")
            place = f"tensordesc<i8[1,{pixels // 8},8,{inner}]>"
            own = {"codes": place, "more_codes": place, "weight": f"tensordesc<{weight}[{block['BLOCK_N']},{inner}]>"}
            fixed = flags | block | {"IMAGES": 1, "HIGH": pixels // 8, "WIDE": 8}
            most = max(most, shared(source.convolution_copied, fixed, **own))
    assert most <= SHARED[chip]


MULTIPLIED = {"images": (2, 5, 7, 6), "tokens": (2, 3, 33), "vectors": (4, 33)}


def multiplied(kind: str) -> tuple[QuantizedLayer, Packed, Step, Tables, Tensor]:
    """A layer whose input has multiples at two timesteps, its packed form, and an input whose channels are of widths
    from 1/8 to 1 and far from zero. Scales are powers of two, so that sums of floats are exact."""
    torch.manual_seed(0)
    shape = MULTIPLIED[kind]
    channel_axis = 1 if len(shape) != 3 else 2
    count = shape[channel_axis]
    along = [count if axis == channel_axis else 1 for axis in range(len(shape))]
    x = torch.randn(shape) * torch.logspace(-3, 0, count, base=2).view(along) + torch.linspace(-3, 4, count).view(along)
    layer: Any = nn.Linear(count, 7, bias=False)
    if kind == "images":
        layer = nn.Conv2d(count, 6, 3, stride=2, padding=1, bias=False)
    step = Step(2, 2)
    site = ActivationQuantizer(shape[1:], Grid(4), for_activation("multiples", len(shape)), "max", step)
    for index in range(2):
        site.choose(site.granularity.rows(x * (1 + index)), index)
    weights = WeightQuantizer(layer.weight, Grid(4), PerAxis(0), "max")
    for each in (site, weights):
        each.scale.data = torch.exp2(each.scale.data.log2().round())
    quantized = QuantizedLayer(layer, Role.CONVOLUTION, weights, site, Switches()).requires_grad_(False)
    place = SiteDescription(
        bits=(4,), layout=tuple(site.scale.shape[1:]), at=0, zero_layout=tuple(site.zero_point.shape[1:]), multiple_at=0
    )
    tables = Tables(
        TablesDescription(steps=2, rows=2, places=1, zero_point="int16", zero_places=count, multiple_places=count)
    )
    codes = weights.codes(layer.weight)
    described = LayerDescription(bits=4, shape=tuple(codes.shape), zero_point="int16", input=(place,))
    packed = pack_layer(copy.deepcopy(layer), described, tables)
    assert site.multiple is not None
    assert len(site.multiple.unique()) > 3
    stored = {
        "codes": packing.pack(codes, Grid(4), "codes"),
        "weight_scale": weights.scale.flatten(1)[:, :1],
        "weight_zero_point": weights.zero_point.flatten(1)[:, :1],
    }
    packed.load_state_dict(stored)
    steps = torch.arange(2)
    own = {"scales": site.scale, "zero_points": site.zero_point, "multiples": site.multiple}
    tables.load_state_dict(
        {"timesteps": 1 - steps, "rows": steps} | {name: table.flatten(1) for name, table in own.items()}
    )
    return quantized, packed, step, tables, x


@torch.no_grad()
def assert_multiples(kind: str, kernel: str, device: str = "cpu") -> None:
    """Of one of `MULTIPLIED`: a kernel gives what the quantized layer does, to the bit, at both timesteps."""
    quantized, packed, step, tables, x = multiplied(kind)
    x = x.to(device)
    for module in (quantized, packed, step, tables):
        module.to(device)
    assert kernels.use_kernels(nn.ModuleList([packed, tables]), kernel) == {"0": kernel}
    outputs = []
    for index in range(2):
        step.set(index)
        tables.use(torch.tensor([index], device=device))
        outputs.append(packed(x))
        assert torch.equal(outputs[-1], quantized(x))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("kind", MULTIPLIED)
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_multiples(kind: str, kernel: str) -> None:
    """Also beyond the border of an image, where an input is zero."""
    if kernel == "cpu" and (why := cpu.lacking(torch.device("cpu"))) is not None:
        pytest.skip(why)
    assert_multiples(kind, kernel)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which torch.compile calls")
@pytest.mark.parametrize("kind", ["images", "tokens"])
@torch.no_grad()
def test_a_layer_with_a_kernel_is_compiled(kind: str) -> None:
    """By what users call: a compiler that takes operators of oneDNN apart refused their packed weights."""
    if (why := cpu.lacking(torch.device("cpu"))) is not None:
        pytest.skip(why)
    _, packed, _, tables, x = multiplied(kind)
    assert kernels.use_kernels(nn.ModuleList([packed, tables]), "cpu") == {"0": "cpu"}
    tables.use(torch.tensor([1]))
    expected = packed(x)
    torch.testing.assert_close(torch.compile(packed, fullgraph=True)(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", MULTIPLIED)
def test_multiples_on_a_gpu(kind: str) -> None:
    assert_multiples(kind, "triton", "cuda")


def test_a_kernel_gets_bytes_of_one_scale() -> None:
    """Codes less their zero points, times their multiples, around 128."""
    _, packed, _, tables, x = multiplied("images")
    kernels.use_kernels(nn.ModuleList([packed, tables]), "reference")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    assert packed.kernel is not None
    packed.kernel.product.register_forward_pre_hook(lambda _module, given: seen.append(given[:3]))  # type: ignore[union-attr]
    tables.use(torch.tensor([1]))
    packed(x)
    ((whole, scale, zero_point),) = seen
    grid = packed.input
    assert isinstance(grid, ActivationGrid)
    assert zero_point.tolist() == [128]
    assert -128 <= whole.min() < whole.max() <= 127
    assert torch.equal(whole, whole.round())
    assert torch.equal(scale, tables.scales[1])
    assert torch.equal(whole * scale, grid(x))


def attended(
    bits: int, device: str, width: int
) -> tuple[QuantizedAttention, Tables, tuple[Tensor, Tensor, Tensor], Tensor]:
    """An attention of three heads, 37 tokens and a context of 21 on grids of two timesteps, what it attends to, and
    what it gives in full precision. width: channels of a head."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 37, width) * 2 + 0.3, torch.randn(3, 21, width) * 1.5 - 0.2, torch.randn(3, 21, width)
    probabilities = (q @ k.transpose(1, 2) * width**-0.5).softmax(-1)
    tables = Tables(TablesDescription(steps=2, rows=2, places=4, zero_point="int16"))
    scales, zero_points, products = torch.ones(2, 4), torch.zeros(2, 4), QuantizedAttention(Switches())
    for place, (name, x) in enumerate({"q": q, "k": k, "v": v, "probabilities": probabilities}.items()):
        grid = Grid(bits, "positive" if name == "probabilities" else "asymmetric")
        for row, part in enumerate((1.0, 0.7)):
            scales[row, place], zero_points[row, place] = (
                each[0] for each in search(part * x.view(1, -1), grid, "max")
            )
        site = SiteDescription(bits=(bits,), layout=(1, 1, 1), at=place, kind=grid.kind)
        products.add_module(name, ActivationGrid(site, tables))
    own = {"timesteps": torch.tensor([1, 0]), "rows": torch.arange(2), "scales": scales}
    tables.load_state_dict(own | {"zero_points": zero_points.to(torch.int16)})
    for module in (products, tables):
        module.to(device)
    return products, tables, (q.to(device), k.to(device), v.to(device)), (probabilities @ v).to(device)


@torch.no_grad()
def assert_attention(bits: int, device: str = "cpu", width: int = 24) -> None:
    """Its kernel gives what an attention on grids does, at both timesteps, and that is far from full precision."""
    products, tables, operands, full = attended(bits, device, width)
    assert attention.why_not(products) is None
    for row in range(2):
        tables.use(torch.tensor([row], device=device))
        expected = products(*operands, width**-0.5)
        attention.give(products, torch.device(device))
        found = products(*operands, width**-0.5)
        instead.take(products)
        apart = float((found - expected).norm() / expected.norm())
        assert apart < 1e-3
        assert float((full - expected).norm() / expected.norm()) > 10 * max(apart, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [24, 160])
@pytest.mark.parametrize("bits", [8, 4])
def test_attention_on_a_gpu(bits: int, width: int) -> None:
    assert_attention(bits, "cuda", width)


def test_attentions_that_no_kernel_computes() -> None:
    """They say why, and where one cannot compute a call it computes in floats."""
    products, tables, (q, k, v), _ = attended(8, "cpu", 24)
    tables.use(torch.tensor([0]))
    mask = torch.zeros(3, 1, 21)
    mask[..., 3:] = -1e4
    expected = products(q, k, v, 24**-0.5, mask)
    attention.give(products, torch.device("cpu"))
    assert torch.equal(products(q, k, v, 24**-0.5, mask), expected)
    instead.take(products)
    products.register_module("probabilities", nn.Identity())
    assert attention.why_not(products) == "its probabilities is not on a grid"


def in_floats(layer: Packed, x: Tensor) -> Tensor:
    """What a layer with a kernel computes without it."""
    kernel, layer.kernel = layer.kernel, None
    found = layer(x)
    layer.kernel = kernel
    return found


def assert_same_as_floats(layer: Packed, tables: Tables) -> None:
    """A convolution's kernel gives what the layer does without it, at each of four steps."""
    x = torch.randn(2, layer.description.shape[1], 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        tables.use(torch.tensor([step]))
        torch.testing.assert_close(layer(x), in_floats(layer, x), rtol=1e-5, atol=1e-5)


def test_multiples_that_fit_no_signed_byte(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    """As trained zero points may not: codes are around another number then, and refused where no byte holds them."""
    unet = packed(make_quantized("w4a4", **MULTIPLES, sets=4))
    layer, tables = packed_layers(unet)["down_blocks.0.resnets.0.conv1"], unet.get_submodule(TABLES)
    assert isinstance(tables, Tables)
    assert isinstance(layer.input, ActivationGrid)
    assert common_zero_point(layer.input) is None
    middle = middle_zero_points(layer.input)
    assert middle is not None
    assert middle.tolist() == [128] * 4
    site = layer.input.site
    assert tables.multiples is not None
    tables.zero_points = tables.zero_points.to(torch.int16)
    tables.zero_points[2, site.zero_points.start : site.zero_points.stop] = 0
    tables.multiples[2, site.multiples.start : site.multiples.stop] = 12
    assert why_not(layer) is None  # 0 to 15 times 12
    middle = middle_zero_points(layer.input)
    assert middle is not None
    assert middle.tolist() == [128, 128, 75, 128]
    assert kernels.use_kernels(unet, "reference")["down_blocks.0.resnets.0.conv1"] == "reference"
    assert_same_as_floats(layer, tables)
    tables.zero_points[2, site.zero_points.start] = 7
    tables.multiples[2, site.multiples.start : site.multiples.stop] = 20
    assert why_not(layer) == "codes times the multiples of its channels are -140 to 300: they do not fit a byte"


def test_multiples_at_some_of_the_steps(
    denoiser: Denoiser, calibration: Calibration, make_settings: Callable[..., DatasetSettings]
) -> None:
    """Steps of 8 bits, whose scales are per tensor, beside those of 4 bits: each has a zero point of its own."""
    recipe = make_recipe(make_settings(quantizer=MULTIPLES), Bits.parse("w4a8"), 2, lower=(4,))
    network = QuantizedNetwork(denoiser.network, recipe, denoiser.example())
    for width in recipe.widths:
        network.use([width] * 4)
        calibrate_activations(network, calibration)
    network.use([8, 4, 8, 4])
    unet = packed(network)
    assert set(kernels.use_kernels(unet, "reference").values()) == {"reference"}
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, timestep in enumerate([750, 500, 250, 0]):
        network.set_step(step)
        with torch.no_grad():
            found, expected = unet(x, timestep).sample, network(x, torch.full((2,), timestep)).sample
        assert float((found - expected).norm() / expected.norm()) < 5e-2


def test_triton_says_what_it_lacks() -> None:
    assert "the model is on cpu" in str(triton_kernels.lacking(torch.device("cpu"))) or "not installed" in str(
        triton_kernels.lacking(torch.device("cpu"))
    )


def packed(network: QuantizedNetwork) -> nn.Module:
    """The packed form of a quantized network, in memory."""
    fields, tensors = take_apart(network, [750, 500, 250, 0], None)
    source: Any = network.network
    made = type(source).from_config(source.config).eval().requires_grad_(False)
    assemble(made, Description(bits="", method="nearest", **fields))
    made.load_state_dict(tensors)
    return made


PER_TENSOR = {"activation_granularity": {"4": "per_tensor", "8": "per_tensor"}}
OFFSETS = {"activation_granularity": {"4": "offsets", "8": "per_tensor"}}
MULTIPLES = {"activation_granularity": {"4": "multiples", "8": "per_tensor"}}


@pytest.mark.parametrize(
    ("bits", "scales"),
    [("w4a4", PER_TENSOR), ("w4a8", PER_TENSOR), ("w8a8", PER_TENSOR), ("w4a4", OFFSETS), ("w4a4", MULTIPLES)],
)
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_a_whole_network(
    bits: str, scales: dict[str, Any], kernel: str, make_quantized: Callable[..., QuantizedNetwork]
) -> None:
    unet = packed(make_quantized(bits, **scales))
    report = kernels.use_kernels(unet, kernel)
    assert set(report.values()) == {kernel}
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, args: inputs.update({name: args[0]})

    for name, module in packed_layers(unet).items():
        module.register_forward_pre_hook(note(name))
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        unet(x, 400)
        for name, module in packed_layers(unet).items():
            with_integers, expected = module(inputs[name]), in_floats(module, inputs[name])
            assert float((with_integers - expected).norm() / expected.norm()) < 1e-5, name
        predicted = unet(x, 400).sample
        kernels.use_kernels(unet, "floats")
        expected = unet(x, 400).sample
    # Layer by layer the same; through a network a rounding of sums may move an activation to the next of its codes.
    assert float((predicted - expected).norm() / expected.norm()) < 5e-2


def test_a_zero_point_for_each_channel(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    """Codes are shifted to one zero point, the same for every timestep, also at padded borders; what does not fit a
    byte then is refused."""
    unet = packed(make_quantized("w4a4", **OFFSETS, sets=4))
    layer, tables = packed_layers(unet)["down_blocks.0.resnets.0.conv1"], unet.get_submodule(TABLES)
    assert isinstance(tables, Tables)
    assert isinstance(layer.input, ActivationGrid)
    assert len(layer.input.site.scales) == 1
    assert len(layer.input.site.zero_points) == layer.description.shape[1]
    common = common_zero_point(layer.input)
    assert common is not None
    assert common == layer.input.all_zero_points().max()
    assert len(layer.input.all_zero_points().unique()) > 1
    kernels.use_kernels(unet, "reference")
    assert_same_as_floats(layer, tables)
    first = layer.input.site.zero_points.start
    tables.zero_points = tables.zero_points.to(torch.int16)
    tables.zero_points[0, first] = common - 240
    assert why_not(layer) is None  # 16 codes, 240 apart: 0 to 255
    tables.zero_points[0, first] = min(common, 0) - 241
    assert why_not(layer) == (
        f"zero points of its channels are {min(common, 0) - 241} to {common}: codes with one for all do not fit a byte"
    )


def test_compiled_with_a_kernel(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    """A layer is one graph without a break, in which the timestep still chooses the scales."""
    unet = packed(make_quantized("w8a8"))
    kernels.use_kernels(unet, "reference")
    tables, layer = unet.get_submodule(TABLES), unet.get_submodule("conv_in")
    assert isinstance(tables, Tables)

    def step(x: Tensor, timestep: Tensor) -> Tensor:
        tables.set(timestep)
        return layer(x)

    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled: Any = torch.compile(step, backend="eager", fullgraph=True)
    with torch.no_grad():
        for timestep in (torch.tensor(750), torch.tensor(0)):
            torch.testing.assert_close(compiled(x, timestep), step(x, timestep))


def test_what_is_refused_says_why(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    unet = packed(make_quantized("w4a4"))
    report = kernels.use_kernels(unet, "reference")
    assert RECIPE in report.values()
    assert "'4': multiples" in RECIPE
    assert RECIPE in kernels.summary(report)
    reasons = {"weight_group": (4, "groups of its inputs"), "split_shortcuts": (True, "is split into")}
    for key, (value, reason) in reasons.items():
        report = kernels.use_kernels(packed(make_quantized("w4a4", **PER_TENSOR, **{key: value})), "reference")
        assert any(reason in why for why in report.values())


def test_a_kernel_that_is_not_there(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    unet = packed(make_quantized("w4a4", **PER_TENSOR))
    with pytest.raises(ValueError, match=r"kernel 'triton' on cpu: .*; choose another, or auto"):
        kernels.use_kernels(unet, "triton")
    with pytest.raises(ValueError, match=r"kernel: .*tritn"):
        kernels.use_kernels(unet, "tritn")
    with pytest.raises(ValueError, match=r"Linear: holds no packed layer; load a folder that quest.export wrote"):
        quest.use_kernels(nn.Linear(1, 1))


def test_weights_that_fit_no_signed_byte(make_quantized: Callable[..., QuantizedNetwork]) -> None:
    """Of 8 bits and any zero point, which leave a rest; what they are is the packed weight all the same."""
    layers = packed_layers(packed(make_quantized("w8a8")))
    found: list[Packed] = [layer for layer in layers.values() if why_not(layer) is None]
    split = [of_layer(each) for each in found]
    assert any(integers.rest is not None for integers in split)
    for each, integers in zip(found, split, strict=True):
        whole = integers.weight.float()
        if integers.rest is not None:
            whole = whole - integers.rest.float().view(-1, *(1,) * (whole.ndim - 1))
        weight = whole * integers.scale.view(-1, *(1,) * (whole.ndim - 1))
        torch.testing.assert_close(weight, each.weight, rtol=1e-6, atol=1e-8)
