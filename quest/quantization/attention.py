"""The two matrix products of an attention with all four operands on grids."""

from __future__ import annotations

from torch import Tensor, nn

from quest.quantization.layers import Switches


class QuantizedAttention(nn.Module):
    """softmax(q·kᵀ · scale + mask)·v, operands on grids.

    Operands, as quantized: q (N·heads, tokens, d), k and v (N·heads, context tokens, d), probabilities (N·heads,
    tokens, context tokens). q and k are quantized before the scaling; the softmax itself is float32. An operand's
    quantizer is the submodule of its name; one without passes as it is.
    """

    def __init__(self, switches: Switches):
        super().__init__()
        self._switches = switches
        self.shapes: dict[str, tuple[int, ...]] = {}  # of each operand as last seen, the batch left out

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
        """(N·heads, tokens, d). scale: d^-1/2 or 1; mask: (N·heads, 1 or tokens, context tokens), added."""
        q, k, v = self._operand("q", q), self._operand("k", k), self._operand("v", v)
        scores = q @ k.transpose(1, 2) * scale
        if mask is not None:
            scores = scores + mask
        return self._operand("probabilities", scores.float().softmax(-1).to(v.dtype)) @ v

    def _operand(self, name: str, x: Tensor) -> Tensor:
        self.shapes[name] = tuple(x.shape[1:])
        quantizer = self._modules.get(name)
        return x if quantizer is None or not self._switches.activations else quantizer(x)
