"""The ways to 299×299, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from miniature import inception
from PIL import Image
from torch import Tensor

from quest.metrics.extractor import Classifier, ClassifierExtractor
from quest.metrics.own.resizing import ADM, OTHERS, RESIZE, bicubic, bilinear, resized


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("size", [(16, 24), (320, 301)])
def test_bicubic_is_pillows_of_each_channel_in_floating_point(size: tuple[int, int]):
    images = pictures(*size)
    found = bicubic(images)
    for image, own in zip(images.numpy(), found.numpy(), strict=True):
        for channel, plane in zip(image, own, strict=True):
            filtered = Image.fromarray(channel.astype(np.float32), "F").resize((299, 299), Image.Resampling.BICUBIC)
            assert np.array_equal(plane, (np.clip(np.asarray(filtered), 0, 255) - 128) / 128)


def test_bilinear_takes_the_two_nearest_centres():
    images = pictures(16, 24)
    found = bilinear(images)
    assert found.shape == (2, 3, 299, 299)
    values = images[1, 2].double() / 255 * 2 - 1
    y, x = (100 + 0.5) * 16 / 299 - 0.5, (200 + 0.5) * 24 / 299 - 0.5  # of pixel (100, 200): half a pixel is its centre
    top, left = int(y), int(x)
    square = values[top : top + 2, left : left + 2]
    rows = torch.tensor([1 - (y - top), y - top]).double()
    columns = torch.tensor([1 - (x - left), x - left]).double()
    assert found[1, 2, 100, 200].item() == pytest.approx((rows @ square @ columns).item(), abs=1e-5)


def test_images_of_299_need_no_resizing():
    images = pictures(299, 299)
    extractor = inception()
    assert torch.equal(bicubic(images), (images.float() - 128) / 128)
    for own, expected in zip(resized(extractor, "pil-bicubic-299")(images), extractor(images), strict=True):
        assert torch.equal(own, expected)


def test_every_resizing_has_its_own_features_of_the_networks_shape():
    images, extractor = pictures(16, 24), inception()
    features = [resized(extractor, resize)(images) for resize in OTHERS]
    for each in features:
        assert [part.shape for part in each] == [part.shape for part in extractor(images)]
    assert not torch.allclose(features[0].pooled, features[1].pooled)
    assert [resized(extractor, resize).resize for resize in RESIZE.values()] == list(RESIZE.values())


def test_an_extractor_is_itself_by_its_own_resizing():
    extractor = inception()
    assert resized(extractor, None) is extractor
    assert resized(extractor, ADM) is extractor


def test_a_network_that_does_not_resize_is_not_made_to():
    extractor = ClassifierExtractor(Classifier(3, 10), "tiny", "0" * 64, "cpu")
    with pytest.raises(ValueError, match="extractor tiny resizes by none, not by pil-bicubic-299"):
        resized(extractor, "pil-bicubic-299")
