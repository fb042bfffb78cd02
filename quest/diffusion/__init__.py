"""Models that denoise, samplers, and what conditions them."""
