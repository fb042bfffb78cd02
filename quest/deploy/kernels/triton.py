"""Integer products on a GPU: one implicit matrix product in Triton, of convolutions and linear layers alike.

Rows are the pixels of the output, columns its channels, and the inner axis runs over the kernel's window and blocks of
input channels. Tensor cores take signed bytes, so that inputs are less 128: q = q_x - 128 and z = z_x - 128. Codes are
made with a border of zero points, so that every window is whole and what is of zero points is taken off at the end:
    Σ (q - z)·(w - r) = Σ q·w - z·Σ w - r·(Σ q - z·|window|).
Σ w is known for each output channel. Σ q, wanted where a weight has a rest, is summed over channels with the codes, and
over the window in the epilogue: in the graph of a compiler it would be a slice for each place, of every convolution.

Weights of up to 4 bits are read two to a byte and unpacked in registers: the low halves are the first half of the input
channels, the high ones the second. They are multiplied as bytes, since the chips meant have no products of 4 bits.
Scales, bias and a residual are the epilogue.
"""

from __future__ import annotations

import importlib
import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quest.deploy.kernels.integers import Integers, lowest_bits, output_size

_ALIGN = 16  # bytes that the copy engine wants a row to be a multiple of
_MOST = 2**31  # elements of a tensor: kernels count them in 32 bits


def lacking(device: torch.device) -> str | None:
    """Why it cannot run on ``device``."""
    try:
        triton: Any = importlib.import_module("triton")
    except ImportError:
        return "Triton is not installed"
    if triton.knobs.runtime.interpret:
        return None  # Triton's interpreter, for tests: on any device
    if device.type != "cuda":
        return f"the model is on {device}"
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8:
        return "this GPU is older than Ampere"
    return _trouble(device)


def refuses(integers: Integers) -> str | None:
    """It computes every layer that `why_not` has nothing against."""
    return None


class Product(nn.Module):
    """A layer as a function of codes less their zero point, their scale (1,), zero point (1,), the dtype of the output,
    and perhaps a residual to add to it."""

    weight: Tensor
    offset: Tensor
    whole: Tensor
    scale: Tensor
    bias: Tensor
    rest: Tensor

    def __init__(self, integers: Integers):
        super().__init__()
        weight = integers.weight if integers.weight.ndim == 4 else integers.weight[:, :, None, None]
        self._outputs, self._channels = weight.shape[:2]
        self.linear = integers.linear
        stride, (above, beside), dilation = integers.geometry
        self._geometry = [*stride, 0, 0, *dilation]
        self.border = (beside, beside, above, above)
        """Zeros that an input has around it, left, right, above and below."""
        self._narrow = integers.bits <= 4 and integers.rest is None
        whole = weight.sum((1, 2, 3), dtype=torch.int32)
        unit = 2 * _ALIGN if self._narrow else _ALIGN
        filled = -(-self._channels // unit) * unit
        offset = weight.int().amin((1, 2, 3)) + 128
        if self._narrow:
            # Less the smallest of their output channel, for channels of different zero points have more than 16 weights
            # together. What is filled up meets inputs that are zero.
            weight = (weight.int() + (128 - offset).view(-1, 1, 1, 1)).to(torch.uint8)
        rows = nn.functional.pad(weight.permute(0, 2, 3, 1), (0, filled - self._channels))  # (O, R, S, filled C)
        if self._narrow:
            rows = rows[..., : filled // 2] | rows[..., filled // 2 :] << 4
        none = torch.zeros(0, device=weight.device)
        tensors = {
            "weight": rows,
            "offset": offset.to(torch.uint8),
            "whole": whole,
            "scale": integers.scale,
            "bias": none if integers.bias is None else integers.bias,
            "rest": none.to(torch.int32) if integers.rest is None else integers.rest,
        }
        for name, tensor in tensors.items():  # kernels take their numbers to lie one after another
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    @property
    def wants_sums(self) -> bool:
        """Whether a weight has a rest, so that the sums of codes are wanted."""
        return self.rest.numel() > 0

    def forward(
        self,
        whole: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        dtype: torch.dtype = torch.float32,
        residual: Tensor | None = None,
    ) -> Tensor:
        x, shape = whole, whole.shape
        if self.linear:
            x = whole.reshape(-1, self._channels, 1, 1)
            residual = None if residual is None else residual.reshape(-1, self._outputs, 1, 1)
        if any(self.border):
            x = nn.functional.pad(x, self.border)
        # Not in the kernel: a compiler fuses these with what makes the codes.
        x = lowest_bits(x + (zero_point - 128)).to(torch.int8).contiguous(memory_format=torch.channels_last)
        sums = x.sum(1, dtype=torch.int32) if self.wants_sums else self.rest
        y = self.of_bytes(x, sums, scale, zero_point, dtype, residual)
        return y.reshape(*shape[:-1], self._outputs) if self.linear else y

    def of_bytes(
        self,
        codes: Tensor,
        sums: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        dtype: torch.dtype,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Of codes (N, C, H, W) int8, less 128, with their border, and their sums (N, H, W) int32 over channels, or
        none of them where they are not wanted."""
        return integer_convolution(
            codes, sums, scale, zero_point, self.weight, self.offset, self.whole, self.scale, self.bias, self.rest,
            residual, self._geometry, self._narrow, dtype,
        )  # fmt: skip


make = Product


@torch.library.custom_op("quest::integer_convolution", mutates_args=())
def integer_convolution(
    codes: Tensor,
    sums: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    weight: Tensor,
    offset: Tensor,
    whole: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    rest: Tensor,
    residual: Tensor | None,
    geometry: list[int],
    narrow: bool,
    dtype: torch.dtype,
) -> Tensor:
    """A convolution of codes (N, C, H, W) int8, less 128, with packed weights; (N, O, P, Q) ``dtype`` in channels-last
    layout.

    sums: (N, H, W) int32, of the codes over channels, where there is a rest. scale, zero_point: (1,) float32, of the
    codes before 128 was taken off. weight: (O, R, S, filled C) int8, or half as many bytes of two. whole: (O,) int32,
    the weights' sums. weight_scale: (O,); bias, rest: (O,), or empty. geometry: stride, padding, dilation, each twice,
    the padding 0. narrow: two weights to a byte, each less its channel's smallest,
    which is ``offset`` (O,) uint8 less 128.
    """
    codes = codes.contiguous(memory_format=torch.channels_last)
    y = _empty(codes, weight, geometry, dtype)
    largest = max(codes, y, key=torch.numel)
    if largest.numel() >= _MOST:
        raise ValueError(
            f"found a tensor of shape {tuple(largest.shape)}, expected fewer than 2^31 elements; draw fewer images at "
            "once"
        )
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    sizes = _Sizes(codes, weight, y, geometry)
    added, sums = y if residual is None else residual, sums.contiguous()
    tensors = (scale, zero_point, offset, whole, weight_scale, bias, rest, sums, added)
    flags: dict[str, Any] = {
        "R": weight.shape[1], "S": weight.shape[2], "NARROW": narrow, "REST": rest.numel() > 0,
        "BIAS": bias.numel() > 0, "RESIDUAL": residual is not None,
    }  # fmt: skip
    with torch.cuda.device_of(codes):
        if _copied(codes, weight, geometry, narrow):
            _launch_copied(codes, weight, tensors, y, sizes, geometry, flags)
        else:
            _launch_loaded(codes, weight, tensors, y, sizes, geometry, flags)
    return y


class _Sizes:
    """Of a product, as the kernels count it. A window of one place makes every pixel of a batch one of a long row."""

    def __init__(self, codes: Tensor, weight: Tensor, y: Tensor, geometry: list[int]):
        self.images, self.channels, self.height, self.width = codes.shape
        _, self.outputs, self.out_height, self.out_width = y.shape
        self.filled = weight.shape[-1]
        self.places = weight.shape[1] * weight.shape[2]
        self.rows = self.images * self.out_height * self.out_width
        if self.places == 1 and geometry[:2] == [1, 1]:
            self.images = self.height = self.out_height = 1
            self.width = self.out_width = self.rows

    def arguments(self) -> tuple[int, ...]:
        size = self.height, self.width, self.out_height, self.out_width
        return self.images, self.outputs, self.channels, self.filled, *size


def _copied(codes: Tensor, weight: Tensor, geometry: list[int], narrow: bool) -> bool:
    """Whether the copy engine can fetch the inputs: strides of 1, rows of whole units, and two halves of channels where
    weights are two to a byte."""
    if geometry[:2] != [1, 1] or codes.shape[1] % _ALIGN or codes.data_ptr() % _ALIGN or not codes.numel():
        return False
    return (not narrow or codes.shape[1] > weight.shape[-1]) and _copies(codes.device)


def _copies(device: torch.device) -> bool:
    """Whether a device has the copy engine that the kernel was measured with."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9


def _launch_copied(
    codes: Tensor, weight: Tensor, tensors: Any, y: Tensor, sizes: _Sizes, geometry: list[int], flags: dict[str, Any]
) -> None:
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_kernel")
    described: Any = importlib.import_module("triton.tools.tensor_descriptor").TensorDescriptor
    block = kernels.block(sizes.rows, sizes.outputs, sizes.channels, flags["NARROW"])
    wide = _power(sizes.out_width, block["BLOCK_M"])
    high = _power(sizes.out_height, block["BLOCK_M"] // wide)
    images = block.pop("BLOCK_M") // (wide * high)
    box = [images, high, wide, block["BLOCK_K"]]
    pixels = codes.permute(0, 2, 3, 1).view(sizes.images, sizes.height, sizes.width, sizes.channels)
    parts = [pixels[..., : sizes.filled], pixels[..., sizes.filled :]] if flags["NARROW"] else [pixels] * 2
    descriptors = [described(part, list(part.shape), list(part.stride()), box) for part in parts]
    rows = described.from_tensor(weight.view(sizes.outputs, -1), [block["BLOCK_N"], block["BLOCK_K"]])
    tiles = -(-sizes.images // images) * -(-sizes.out_height // high) * -(-sizes.out_width // wide)
    kernels.convolution_copied[(tiles * -(-sizes.outputs // block["BLOCK_N"]),)](
        *descriptors, rows, *tensors, y, *sizes.arguments(), *geometry[:2], *geometry[4:],
        **flags, IMAGES=images, HIGH=high, WIDE=wide, **block,
    )  # fmt: skip


def _launch_loaded(
    codes: Tensor, weight: Tensor, tensors: Any, y: Tensor, sizes: _Sizes, geometry: list[int], flags: dict[str, Any]
) -> None:
    kernels: Any = importlib.import_module("quest.deploy.kernels._triton_kernel")
    block = kernels.loaded_block(sizes.rows, sizes.outputs)
    grid = (-(-sizes.rows // block["BLOCK_M"]) * -(-sizes.outputs // block["BLOCK_N"]),)
    kernels.convolution_loaded[grid](
        codes, weight, *tensors, y, *sizes.arguments(), *geometry[:2], *geometry[4:], **flags, **block
    )


def _power(size: int, most: int) -> int:
    """The largest power of two that is neither above ``most`` nor twice too large for ``size``."""
    return min(1 << max(size - 1, 0).bit_length(), most)


@integer_convolution.register_fake
def _(codes: Tensor, *others: Any) -> Tensor:
    weight, geometry, dtype = others[3], others[-3], others[-1]
    return _empty(codes, weight, geometry, dtype)


def _empty(codes: Tensor, weight: Tensor, geometry: list[int], dtype: torch.dtype) -> Tensor:
    shape = (len(codes), len(weight), *output_size(codes, geometry, weight.shape[1:3]))
    return torch.empty(shape, dtype=dtype, device=codes.device, memory_format=torch.channels_last)


@cache
def _trouble(device: torch.device) -> str | None:
    """What goes wrong when Triton multiplies bytes on ``device``; None if the sums are right, by both kernels and for
    both widths of weights."""
    codes = torch.full((1, 32, 8, 8), 255.0, device=device)
    one = torch.ones(1, device=device)
    for bits, stride in itertools.product((8, 4), (1, 2)):
        lowest = -(2 ** (bits - 1))
        weight = torch.full((32, 32, 3, 3), lowest, dtype=torch.int8, device=device)
        integers = Integers(weight, None, one.expand(32), None, ((stride, stride), (1, 1), (1, 1)), bits)
        try:
            found: Any = make(integers)(codes, one, 0 * one)
        except Exception as error:  # of many kinds: what a compiler says that cannot make the product
            said = " ".join(str(error).split())[:300]
            return f"Triton cannot multiply bytes on this GPU ({type(error).__name__}: {said})"
        if float(found.min()) != lowest * 255 * 32 * 9:
            return "Triton's sums of bytes are wrong on this GPU"
    return None
