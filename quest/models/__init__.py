"""Full-precision models: the denoiser, its noise schedule and loaders, and the embedded datasets."""
