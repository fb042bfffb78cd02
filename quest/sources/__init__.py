"""Where full-precision models come from."""
