"""Low-bit checkpoints and what is made of them."""
