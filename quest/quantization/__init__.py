"""Quantization of a network: grid, granularity, rounding, quantizers, layers, roles, and the quantized network."""
