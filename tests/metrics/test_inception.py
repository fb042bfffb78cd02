"""The Inception extractor: what is said where it cannot be had, and on the real network, its tensors."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quest.artifacts import ArtifactError
from quest.metrics import inception
from quest.metrics.distances import FrechetDistance, fit
from quest.metrics.extractor import load_extractor
from quest.metrics.inception import InceptionExtractor

HAS_LIBRARY = all(importlib.util.find_spec(name) for name in ("torch_fidelity", "torchvision"))
log = logging.getLogger(__name__)


def pictures(count: int, size: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Miniature(nn.Module):
    """The parts of torch-fidelity's network that the extractor touches."""

    def __init__(self) -> None:
        super().__init__()
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 9, 1)
        self.tf32: list[bool] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.tf32.append(torch.backends.cudnn.allow_tf32)
        maps = self.Mixed_6d.branch1x1(x.float())  # pyright: ignore[reportCallIssue]
        return maps.mean((2, 3)), maps.amax((2, 3))


def test_missing_weights_say_where_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    expected = tmp_path / "checkpoints" / inception.WEIGHTS
    with pytest.raises(ArtifactError, match=f"{expected}: no such file; .*download {inception.WEIGHTS_URL}"):
        load_extractor(Path("inception-fid"))
    with pytest.raises(ArtifactError, match=r"mine\.pth: no such file"):
        load_extractor(Path("mine.pth"))


def test_other_weights_are_refused(tmp_path: Path):
    file = tmp_path / inception.WEIGHTS
    file.write_bytes(b"half a download")
    with pytest.raises(ArtifactError, match="the published weights have 6726825d…; delete it and download"):
        load_extractor(file)


@pytest.mark.skipif(HAS_LIBRARY, reason="torch-fidelity is here")
def test_without_torch_fidelity_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / inception.WEIGHTS
    file.write_bytes(b"stand-in")
    monkeypatch.setattr(inception, "SHA256_PREFIX", hashlib.sha256(b"stand-in").hexdigest()[:8])
    with pytest.raises(ArtifactError, match=r"needs torch-fidelity .*quest-diffusion\[inception\]"):
        load_extractor(file)


def test_spatial_features_are_seven_channels_in_the_order_height_width_channel():
    network = Miniature()
    extractor = InceptionExtractor(network, "miniature", "0" * 64, "cpu")
    images = pictures(5, 4)
    features = extractor(images, batch_size=2)
    maps = network.Mixed_6d.branch1x1(images.float())  # pyright: ignore[reportCallIssue]
    assert features.spatial.shape == (5, 4 * 4 * 7)
    for height, width, channel in ((0, 0, 0), (1, 2, 3), (3, 3, 6)):
        torch.testing.assert_close(
            features.spatial[:, (height * 4 + width) * 7 + channel], maps[:, channel, height, width]
        )


def test_tf32_is_off_within_and_as_before_afterwards():
    network = Miniature()
    extractor = InceptionExtractor(network, "miniature", "0" * 64, "cpu")
    before = torch.backends.cudnn.allow_tf32
    extractor(pictures(2, 4))
    assert network.tf32 == [False]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 3, 8, 8), torch.nan), "with NaN or infinite values in 2, expected"),
        (
            torch.rand(2, 3, 8, 8) * 2 - 1,
            r"torch.float32 from -\S+ to \S+, expected .*scale to 0 … 255, round and clip",
        ),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\) torch.uint8, expected \(N, 3, H, W\)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), r"\(0, 3, 8, 8\) torch.uint8, expected"),
    ],
    ids=["nan", "range", "channels", "empty"],
)
def test_other_images_are_refused(images: Tensor, message: str):
    with pytest.raises(ValueError, match=f"extractor miniature: found images .*{message}"):
        InceptionExtractor(Miniature(), "miniature", "0" * 64, "cpu")(images)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_LIBRARY, reason="needs torch-fidelity and torchvision")
def test_features_are_the_tensors_of_torch_fidelitys_network(tmp_path: Path):
    """The network with random weights, against its own modules called one by one.

    These tests need no diffusers: ``pytest --noconftest -m gpu --log-cli-level=INFO tests/metrics/test_inception.py``.
    """
    from torch_fidelity.interpolate_compat_tensorflow import (  # pyright: ignore[reportMissingImports]
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = inception.untrained(tmp_path, device)
    network: Any = extractor.network
    images = pictures(6)
    found = extractor(images, batch_size=4)
    assert [tuple(part.shape) for part in found] == [(6, 2048), (6, 2023), (6, 1008)]
    assert all(part.dtype == torch.float32 for part in found)

    maps = torch.empty(0)
    with torch.inference_mode(), inception.without_tf32():
        x = interpolate_bilinear_2d_like_tensorflow1x(images.to(device).float(), size=(299, 299), align_corners=False)
        x = (x - 128) / 128
        for name, module in network.named_children():
            if name == "Mixed_6d":
                unit = module.branch1x1
                maps = unit.bn(unit.conv(x)).relu()
            if name == "fc":
                break
            x = module(x)
        pooled = x.flatten(1)
        logits = pooled @ network.fc.weight.T  # without the bias
    assert maps.shape == (6, 192, 17, 17)
    order = [(h, w, channel) for h in range(17) for w in range(17) for channel in range(7)]
    spatial = torch.stack([maps[:, channel, h, w] for h, w, channel in order], 1)
    for name, own, expected in zip(found._fields, found, (pooled, spatial, logits), strict=True):
        largest = expected.abs().max().item()
        gap = (own - expected).abs().max().item() / largest
        log.info(
            "%s %s on %s: differs by %.1e of its largest value, %.3g", name, tuple(own.shape), device, gap, largest
        )
        assert gap < 1e-5
        assert own.std() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_LIBRARY, reason="needs torch-fidelity and torchvision")
def test_fid_is_that_of_torch_fidelity(tmp_path: Path):
    from torch_fidelity.metric_fid import (  # pyright: ignore[reportMissingImports]
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    extractor = inception.untrained(tmp_path, "cuda" if torch.cuda.is_available() else "cpu")
    images = pictures(80)
    features = [extractor(part).pooled[:, :24].cpu().double() for part in (images[:40], images[40:] // 2)]
    own = FrechetDistance(fit(features[0]))(fit(features[1]))
    statistics = [fid_features_to_statistics(rows) for rows in features]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    log.info("FID of 24 features: %.12g, torch-fidelity's %.12g", own, expected)
    assert own == pytest.approx(expected, rel=1e-9)
