"""Which device a stage runs on."""

from __future__ import annotations

import torch


def resolve(name: str) -> torch.device:
    """The first GPU, or else the CPU, for "auto"; otherwise the device named. Raises ValueError when there is none.

    From then on a GPU computes in float32 where it is told to: by default its convolutions round their operands to
    TF32, which has the 10 bits of a half, so that the same cell would differ between machines.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: {name!r} is not a device; expected auto, cpu or cuda[:index]") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: {name!r} is not there; this machine has {torch.cuda.device_count()} GPUs")
    return device
