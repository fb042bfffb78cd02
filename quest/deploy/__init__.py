"""Low-bit models: quantized in memory, kept in checkpoints, and what is made of them."""
