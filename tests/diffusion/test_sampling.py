"""Images: the same whatever the batches and shards. Batch size changes float rounding, so by one grey level at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quest.artifacts import load_tensors
from quest.config.dataset import DatasetSettings
from quest.deploy import checkpoints
from quest.deploy.checkpoints import Checkpoint
from quest.diffusion import sampling
from quest.diffusion.denoiser import Denoiser
from quest.quantization.network import QuantizedNetwork
from quest.stages import sample

CPU = torch.device("cpu")
LEVELS = 1


def same(images: Tensor, expected: Tensor) -> bool:
    return bool(((images.int() - expected.int()).abs() <= LEVELS).all())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batches_do_not_matter(denoiser: Denoiser, make_settings: Callable[..., DatasetSettings], eta: float) -> None:
    def draw(batch_size: int, indices: range) -> Tensor:
        settings = make_settings(sampler={"eta": eta}, evaluation={"batch_size": batch_size})
        return sampling.draw(denoiser, denoiser.network, settings, 0, indices, CPU)

    images = draw(6, range(6))
    assert images.shape == (6, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert not same(images[:3], images[3:])
    for batch_size in (1, 4):
        assert same(draw(batch_size, range(6)), images)
    assert same(draw(2, range(3, 6)), images[3:])


def test_shards_of_the_stage(
    model_file: Path, denoiser: Denoiser, make_settings: Callable[..., DatasetSettings], tmp_path: Path
) -> None:
    def run(shards: int) -> Tensor:
        settings = make_settings(evaluation={"shards": shards, "images": 7, "batch_size": 3})
        images = []
        for shard in range(shards):
            path = tmp_path / f"{shards}-{shard}.safetensors"
            sample.run("tiny", settings, model_file, None, 3, shard, path, CPU)
            artifact = load_tensors(path, "samples")
            assert artifact.manifest.seeds == {"run": 3}
            assert artifact.manifest.inputs == {"model": denoiser.sha256}
            assert artifact.manifest.notes["first"] == sum(len(part) for part in images)
            assert (artifact.manifest.notes["method"], artifact.manifest.notes["bits"]) == ("fp", "w32a32")
            images.append(artifact.tensors["images"])
        return torch.cat(images)

    images = run(1)
    assert len(images) == 7
    assert same(run(2), images)
    assert same(run(3), images)


@pytest.mark.parametrize("seed", [0, 1])  # seeds may share the checkpoint of one
def test_images_of_a_checkpoint(
    model_file: Path,
    denoiser: Denoiser,
    settings: DatasetSettings,
    make_quantized: Callable[..., QuantizedNetwork],
    tmp_path: Path,
    seed: int,
) -> None:
    network = make_quantized("w4a4")
    path, output = tmp_path / "checkpoint.safetensors", tmp_path / "samples.safetensors"
    checkpoints.save(path, Checkpoint(network, "nearest", settings.sampler, inputs={"model": denoiser.sha256}))
    sample.run("tiny", settings, model_file, path, seed, 0, output, CPU)
    artifact = load_tensors(output, "samples")
    assert (artifact.manifest.notes["method"], artifact.manifest.notes["bits"]) == ("nearest", "w4a4")
    assert artifact.manifest.seeds == {"run": seed}
    assert set(artifact.manifest.inputs) == {"model", "checkpoint"}
    assert torch.equal(artifact.tensors["images"], sampling.draw(denoiser, network, settings, seed, range(3), CPU)), (
        "the same network, its weights quantized once"
    )
    full = sampling.draw(denoiser, denoiser.network, settings, seed, range(3), CPU)
    assert not same(artifact.tensors["images"], full)


def test_a_checkpoint_is_sampled_with_its_own_sampler_alone(
    model_file: Path,
    denoiser: Denoiser,
    make_settings: Callable[..., DatasetSettings],
    make_quantized: Callable[..., QuantizedNetwork],
    tmp_path: Path,
) -> None:
    path, output = tmp_path / "checkpoint.safetensors", tmp_path / "samples.safetensors"
    made_for = make_settings().sampler
    checkpoints.save(path, Checkpoint(make_quantized(), "nearest", made_for, inputs={"model": denoiser.sha256}))
    noisier = make_settings(sampler={"eta": 1.0})  # of as many steps
    with pytest.raises(ValueError, match=r"for a sampler with eta 0.0, but the protocol's has eta 1.0; finetune again"):
        sample.run("tiny", noisier, model_file, path, 0, 0, output, CPU)
    assert not output.exists()


def test_to_uint8() -> None:
    x = torch.tensor([-3.0, -1, -1 + 1 / 255, 0, 1, 2])
    assert sampling.to_uint8(x).tolist() == [0, 0, 0, 128, 255, 255]
    assert sampling.to_uint8(torch.tensor([-1 + 1.1 / 127.5])).tolist() == [1]


@pytest.mark.parametrize(("images", "shards"), [(10, 3), (7, 7), (1000, 2), (5, 1)])
def test_shards_cover_all_images_once(images: int, shards: int) -> None:
    parts = [sampling.shard_indices(images, shard, shards) for shard in range(shards)]
    assert [i for part in parts for i in part] == list(range(images))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", [-1, 2])
def test_shard_that_is_not_there(shard: int) -> None:
    with pytest.raises(ValueError, match=f"--shard: {shard}; evaluation.shards is 2, so 0 to 1 are there"):
        sampling.shard_indices(10, shard, 2)
