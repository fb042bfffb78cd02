"""`quest reference` and `quest measure` on small artifacts: numbers, and files that do not belong together."""

from __future__ import annotations

import hashlib
import json
import shutil
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from quest import artifacts
from quest.artifacts import ArtifactError, Manifest, load_json, load_tensors, save_tensors
from quest.config.dataset import DatasetSettings
from quest.embedded.images import real_images
from quest.metrics.distances import Estimate, fit
from quest.metrics.extractor import Classifier, load_extractor, save_extractor
from quest.stages import measure, reference

CPU = torch.device("cpu")
IMAGES, SHARDS = 40, 2


class Files(NamedTuple):
    """The artifacts of a tiny dataset; the extractor has random weights, which is enough to compare by."""

    folder: Path
    settings: DatasetSettings
    extractor: Path
    model: Path
    checkpoint: Path
    reference: Path
    full_precision: list[Path]
    samples: list[Path]

    def measure(self, **changes: Any) -> dict[str, Any]:
        """The row of the quantized cell, with some arguments of `measure.run` changed."""
        output = self.folder / "metrics.json"
        arguments = {
            "dataset": "digits",
            "settings": self.settings,
            "samples": self.samples,
            "full_precision": self.full_precision,
            "reference": self.reference,
            "extractor": self.extractor,
            "checkpoint": self.checkpoint,
            "model": self.model,
            "output": output,
            "device": CPU,
        }
        measure.run(**(arguments | changes))
        return load_json(output, "metrics").content


def settings(**evaluation: Any) -> DatasetSettings:
    return DatasetSettings.model_validate(
        {
            "title": "digits",
            "model": "model.safetensors",
            "extractor": "extractor.safetensors",
            "real_images": "digits",
            "image_size": 16,
            "image_channels": 1,
            "evaluation": {"images": IMAGES, "shards": SHARDS, "inception_split_size": 20, "kid_block_size": 20}
            | evaluation,
        }
    )


def write_shards(
    folder: Path,
    images: Tensor,
    inputs: dict[str, str],
    method: str = "quest",
    bits: str = "w4a4",
    seed: int = 0,
    shards: int = SHARDS,
) -> list[Path]:
    """``images`` cut evenly into sample artifacts."""
    files, first = [], 0
    for shard, part in enumerate(images.tensor_split(shards)):
        notes = {"method": method, "bits": bits, "first": first, "shard": shard, "shards": shards}
        files.append(folder / f"{method}-{bits}-seed{seed}.{shard}.safetensors")
        manifest = Manifest(
            kind="samples", settings={"sampler": {"steps": 4}}, seeds={"run": seed}, inputs=inputs, notes=notes
        )
        save_tensors(files[-1], {"images": part}, manifest)
        first += len(part)
    return files


def noisy(images: Tensor, amount: int) -> Tensor:
    noise = torch.randint(-amount, amount + 1, images.shape, generator=torch.Generator().manual_seed(1))
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Files:
    """A copy for one test to break."""
    folder = shutil.copytree(made, tmp_path / "run")
    return Files(
        folder,
        settings(),
        extractor=folder / "extractor.safetensors",
        model=folder / "denoiser.safetensors",
        checkpoint=folder / "checkpoint.safetensors",
        reference=folder / "reference.safetensors",
        full_precision=[folder / f"fp-w32a32-seed0.{shard}.safetensors" for shard in range(SHARDS)],
        samples=[folder / f"quest-w4a4-seed0.{shard}.safetensors" for shard in range(SHARDS)],
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `Files`."""
    tmp_path = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    extractor, model, checkpoint = (
        tmp_path / f"{name}.safetensors" for name in ("extractor", "denoiser", "checkpoint")
    )
    save_extractor(extractor, Classifier(1, 10), "tiny", Manifest(kind="extractor"))
    weights = {"weight": torch.zeros(1)}
    origin = save_tensors(
        model, weights, Manifest(kind="model", notes={"account": {"weight_mib": 4.0, "gbops": 100.0}})
    )
    quantized = save_tensors(
        checkpoint,
        weights,
        Manifest(
            kind="checkpoint",
            settings={"methods": {"quest": {"tla_epochs": 2}}},
            seeds={"run": 7},  # seeds may share a chain
            notes={
                "account": {"weight_mib": 0.5, "gbops": 2.0, "layers": 3},
                "trained_share": 0.125,
                "optimizer_steps": {"tla": 8, "cma": 12},
            },
        ),
    )
    reference.run("digits", settings(), extractor, tmp_path / "reference.safetensors", CPU)
    images = real_images("digits", 16)[:IMAGES]
    inputs = {"model": origin.sha256}
    write_shards(tmp_path, images, inputs, "fp", "w32a32")
    write_shards(tmp_path, noisy(images, 20), inputs | {"checkpoint": quantized.sha256})
    return tmp_path


def test_reference_holds_the_statistics_of_all_real_images(files: Files):
    artifact = load_tensors(files.reference, "reference")
    features = load_extractor(files.extractor)(real_images("digits", 16))
    assert artifact.manifest.notes == {
        "dataset": "digits",
        "extractor": "tiny",
        "resize": "none",
        "images": 1797,
        "manifold_images": 1797,
    }
    assert artifact.manifest.inputs == {"extractor": load_tensors(files.extractor, "extractor").manifest.sha256}
    assert torch.equal(artifact.tensors["pooled"], features.pooled)
    for name, values in (("pooled", features.pooled), ("spatial", features.spatial)):
        gaussian = fit(values)
        assert torch.equal(artifact.tensors[f"{name}_mean"], gaussian.mean)
        assert torch.equal(artifact.tensors[f"{name}_covariance"], gaussian.covariance)
        assert artifact.tensors[f"{name}_covariance"].dtype == torch.float64


def test_reference_of_a_dataset_without_real_images_is_refused(files: Files):
    bare = files.settings.model_copy(update={"real_images": None})
    with pytest.raises(ValueError, match="bedrooms: neither real_images nor reference_batch is set"):
        reference.run("bedrooms", bare, files.extractor, files.folder / "r.safetensors", CPU)


def test_row_of_a_quantized_cell(files: Files):
    row = files.measure()
    assert (row["dataset"], row["method"], row["bits"], row["seed"]) == ("digits", "quest", "w4a4", 0)
    assert row["chain_seed"] == 7
    assert (row["images"], row["reference_images"], row["extractor"]) == (IMAGES, 1797, "tiny")
    assert (row["weight_mib"], row["gbops"], row["layers"]) == (0.5, 2.0, 3)
    assert (row["trained_share"], row["optimizer_steps"]) == (0.125, 20)

    images = torch.cat([load_tensors(file, "samples").tensors["images"] for file in files.samples]).double() / 255
    targets = torch.cat([load_tensors(file, "samples").tensors["images"] for file in files.full_precision]) / 255
    mse = (images - targets).square().mean().item()
    assert row["mse"] == pytest.approx(mse, rel=1e-6)
    each = load_json(files.folder / "metrics.json", "metrics").manifest.notes["mse_of_images"]
    assert each == pytest.approx((images - targets).square().flatten(1).mean(1).tolist(), rel=1e-3)
    assert row["psnr"] == pytest.approx(-10 * torch.tensor(mse).log10().item(), rel=1e-5)
    assert row["fid"] > 0
    assert row["sfid"] > 0
    assert 0 <= row["precision"] <= 1
    assert 0 <= row["recall"] <= 1
    assert 1 <= row["is"] <= 10


def test_every_number_carries_its_error_and_its_protocol(files: Files):
    row = files.measure()
    for name in ("fid", "sfid", "is", "kid", "precision", "recall"):
        assert row[f"{name}_se"] >= 0
    assert row["fid_infinity"] is None  # 40 images, 64 features
    manifest = load_json(files.folder / "metrics.json", "metrics").manifest
    assert row["reference_sha256"] == manifest.inputs["reference"]
    assert (row["resize"], row["neighbours"], row["manifold_images"]) == ("none", 3, 1797)
    assert (row["inception_split_size"], row["kid_block_size"]) == (20, 20)


def test_clip_score_is_measured_where_the_protocol_asks_for_it(files: Files, monkeypatch: pytest.MonkeyPatch):
    class Score:
        def __init__(self, model: str, images: int, device: torch.device):
            assert (model, images) == ("openai/clip-vit-base-patch16", IMAGES)
            self.prompts: dict[int, str] = {}

        def update(self, first: int, images: Tensor, prompts: list[str]) -> None:
            assert len(images) == len(prompts)
            self.prompts |= dict(enumerate(prompts, first))

        def compute(self) -> Estimate:
            assert self.prompts == {i: f"prompt {i}" for i in range(IMAGES)}
            return Estimate(31.5, 0.1)

    monkeypatch.setattr("quest.metrics.clip.ClipScore", Score)
    prompts = files.folder / "prompts.txt"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(IMAGES)))
    row = files.measure(settings=settings(clip={"prompts": str(prompts)}))
    assert (row["clip"], row["clip_se"], row["clip_model"]) == (31.5, 0.1, "openai/clip-vit-base-patch16")
    assert row["clip_prompts_sha256"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert "clip" not in files.measure()


def test_a_reference_of_another_size_is_found(files: Files):
    reference.run("digits", settings().model_copy(update={"image_size": 8}), files.extractor, files.reference, CPU)
    with pytest.raises(ValueError, match=r"reference.safetensors: of images of size 8, but image_size is 16"):
        files.measure()
    assert not (files.folder / "metrics.json").exists()


def test_a_corrupt_shard_is_found_and_leaves_an_earlier_result(files: Files):
    files.measure()
    before = (files.folder / "metrics.json").read_bytes()
    data = bytearray(files.samples[1].read_bytes())
    data[-1] ^= 1
    files.samples[1].write_bytes(data)
    with pytest.raises(ArtifactError, match=r"quest-w4a4-seed0.1.safetensors: corrupt"):
        files.measure()
    assert (files.folder / "metrics.json").read_bytes() == before


def test_an_empty_shard_is_found(files: Files):
    inputs = load_tensors(files.samples[0], "samples").manifest.inputs
    images = torch.zeros(0, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"found images \(0, 1, 16, 16\)"):
        files.measure(samples=write_shards(files.folder, images, inputs))


def test_row_of_full_precision_has_the_models_account_and_no_psnr(files: Files):
    row = files.measure(samples=files.full_precision, checkpoint=None)
    assert (row["method"], row["bits"], row["mse"], row["psnr"]) == ("fp", "w32a32", 0.0, None)
    assert (row["weight_mib"], row["gbops"]) == (4.0, 100.0)
    assert row["fid"] < files.measure()["fid"]  # the noise of the quantized images shows


def test_manifest_says_what_the_row_was_made_of(files: Files):
    files.measure()
    manifest = load_json(files.folder / "metrics.json", "metrics").manifest
    assert manifest.settings["methods"] == {"quest": {"tla_epochs": 2}}
    assert manifest.settings["sampler"] == {"steps": 4}
    assert manifest.settings["evaluation"]["images"] == IMAGES
    for name, file, kind in (
        ("reference", files.reference, "reference"),
        ("extractor", files.extractor, "extractor"),
        ("model", files.model, "model"),
        ("checkpoint", files.checkpoint, "checkpoint"),
        ("samples.1", files.samples[1], "samples"),
        ("full_precision.0", files.full_precision[0], "samples"),
    ):
        assert manifest.inputs[name] == load_tensors(file, kind).manifest.sha256


def test_numbers_do_not_depend_on_shards_their_order_or_batches(files: Files):
    expected = files.measure()
    assert files.measure(samples=files.samples[::-1], full_precision=files.full_precision[::-1]) == expected

    many = settings(shards=13, batch_size=7)  # more than ten, so that shard 10 sorts before shard 2 as text
    whole = {
        name: torch.cat([load_tensors(file, "samples").tensors["images"] for file in paths])
        for name, paths in (("own", files.samples), ("teacher", files.full_precision))
    }
    own_inputs = load_tensors(files.samples[0], "samples").manifest.inputs
    teacher_inputs = {"model": own_inputs["model"]}
    other = files.measure(
        settings=many,
        samples=sorted(write_shards(files.folder, whole["own"], own_inputs, shards=13)),
        full_precision=sorted(write_shards(files.folder, whole["teacher"], teacher_inputs, "fp", "w32a32", shards=13)),
    )
    assert other["mse"] == expected["mse"]
    for name in ("fid", "sfid", "is", "precision", "recall"):
        assert other[name] == pytest.approx(expected[name], rel=1e-5)


def test_few_images_are_warned_about(files: Files, caplog: pytest.LogCaptureFixture):
    files.measure()
    assert f"{IMAGES} images against 1797 reference images for 64 features" in caplog.text


def test_a_missing_shard_is_found(files: Files):
    with pytest.raises(ValueError, match=r"quest-w4a4-seed0.0.safetensors: one of 2 shards, but 1 were given"):
        files.measure(samples=files.samples[:1], full_precision=files.full_precision[:1])


def test_a_shard_given_twice_is_found(files: Files):
    with pytest.raises(ValueError, match=r"seed0.0.safetensors: starts at image 0, but 20 is next"):
        files.measure(samples=[files.samples[0]] * 2)


def test_too_few_images_for_the_protocol_are_found(files: Files):
    with pytest.raises(ValueError, match=r"ends at 40 images; evaluation.images is 50"):
        files.measure(settings=settings(images=50))


def test_shards_of_another_cell_are_found(files: Files):
    inputs = load_tensors(files.samples[0], "samples").manifest.inputs
    images = torch.zeros(IMAGES, 1, 16, 16, dtype=torch.uint8)
    for stranger in (
        write_shards(files.folder, images, inputs, bits="w4a8"),
        write_shards(files.folder, images, inputs, seed=1),
        write_shards(files.folder, images, inputs, method="tfmqdm"),
    ):
        with pytest.raises(ValueError, match=r"a shard of .* among shards of .*"):
            files.measure(samples=[files.samples[0], stranger[1]])


def test_shards_from_two_checkpoints_are_found(files: Files):
    inputs = load_tensors(files.samples[0], "samples").manifest.inputs | {"checkpoint": "0" * 64}
    other = write_shards(files.folder / "other", torch.zeros(IMAGES, 1, 16, 16, dtype=torch.uint8), inputs)
    with pytest.raises(ValueError, match="drawn from another network or sampler"):
        files.measure(samples=[files.samples[0], other[1]])


def test_samples_of_another_checkpoint_than_the_one_given_are_found(files: Files):
    save_tensors(files.checkpoint, {"weight": torch.ones(1)}, Manifest(kind="checkpoint"))
    with pytest.raises(ValueError, match="sample it again, or name the model and checkpoint"):
        files.measure()


def test_full_precision_without_its_checkpoint_argument_is_the_only_one(files: Files):
    with pytest.raises(ValueError, match=r"drawn from checkpoint .*, model .*, but the files given are model"):
        files.measure(checkpoint=None)


def test_closeness_needs_full_precision_on_the_same_seed(files: Files):
    inputs = {"model": load_tensors(files.model, "model").manifest.sha256}
    images = torch.zeros(IMAGES, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected fp on seed 0"):
        files.measure(full_precision=write_shards(files.folder, images, inputs, "fp", "w32a32", seed=1))
    with pytest.raises(ValueError, match=r"drawn from checkpoint .*, model"):
        files.measure(full_precision=files.samples)


def test_two_shards_are_in_memory_at_once(files: Files, monkeypatch: pytest.MonkeyPatch):
    read: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def load(path: Path, kind: str) -> Any:
        artifact = load_tensors(path, kind)
        if kind == "samples":
            alive.append(sum(images() is not None for images in read))
            read.append(weakref.ref(artifact.tensors["images"]))
        return artifact

    monkeypatch.setattr("quest.metrics.measure.load_tensors", load)
    files.measure()
    assert len(alive) == 2 * SHARDS
    assert max(alive) == 1, "others while one is read"


def test_full_precision_cut_otherwise_is_found(files: Files):
    inputs = {"model": load_tensors(files.model, "model").manifest.sha256}
    images = torch.zeros(IMAGES, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="cut into other shards"):
        files.measure(full_precision=write_shards(files.folder, images, inputs, "fp", "w32a32", shards=4))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(IMAGES, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(IMAGES, 1, 16, 16),
    ],
    ids=["size", "channels", "dtype"],
)
def test_images_of_another_shape_or_dtype_are_found(files: Files, images: Tensor):
    inputs = load_tensors(files.samples[0], "samples").manifest.inputs
    with pytest.raises(ValueError, match=r"expected \(n, 1, 16, 16\) torch.uint8"):
        files.measure(samples=write_shards(files.folder, images, inputs))


def test_a_reference_of_another_extractor_is_found(files: Files):
    torch.manual_seed(1)
    save_extractor(files.extractor, Classifier(1, 10), "tiny", Manifest(kind="extractor"))
    with pytest.raises(ValueError, match=r"reference.safetensors: made with extractor"):
        files.measure()


def test_an_extractor_that_gives_nan_is_an_error_and_writes_nothing(files: Files):
    classifier = Classifier(1, 10)
    with torch.no_grad():
        classifier.head.bias.fill_(torch.nan)
    save_extractor(files.extractor, classifier, "broken", Manifest(kind="extractor"))
    reference.run("digits", files.settings, files.extractor, files.reference, CPU)  # its pooled features are finite
    with pytest.raises(ValueError, match="NaN or infinite features"):
        files.measure()
    assert not (files.folder / "metrics.json").exists()


def test_a_number_that_is_not_finite_never_reaches_the_file(files: Files, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("quest.metrics.distances.distance_at_infinity", lambda *_: Estimate(float("nan"), None))
    with pytest.raises(ValueError, match="fid_infinity is nan; expected a finite number"):
        files.measure()
    assert not (files.folder / "metrics.json").exists()


def test_equal_inputs_give_equal_bytes(files: Files):
    files.measure()
    first = (files.folder / "metrics.json").read_bytes()
    files.measure()
    assert (files.folder / "metrics.json").read_bytes() == first
    assert json.loads(first)["manifest"]["schema_version"] == artifacts.SCHEMA_VERSION


def test_a_row_names_a_backend_that_is_not_the_default(files: Files) -> None:
    assert "backend" not in files.measure()
    with pytest.raises(ValueError, match=r"drawn through the fake backend, but evaluation.backend is integer; sample"):
        files.measure(settings=settings(backend="integer"))
    through_integers = [redrawn(file, {"backend": "integer"}) for file in files.samples]
    assert files.measure(samples=through_integers, settings=settings(backend="integer"))["backend"] == "integer"
    with pytest.raises(ValueError, match=r"drawn through the integer backend, but evaluation.backend is fake"):
        files.measure(samples=through_integers)
    mixed = [through_integers[0], files.samples[1]]
    with pytest.raises(ValueError, match=r"drawn from another network or sampler than"):
        files.measure(samples=mixed, settings=settings(backend="integer"))


def redrawn(file: Path, more: dict[str, Any]) -> Path:
    """A copy of samples whose manifest says ``more`` of their settings."""
    artifact = load_tensors(file, "samples")
    manifest = artifact.manifest
    copy = file.with_name(f"again-{file.name}")
    again = Manifest("samples", manifest.settings | more, manifest.seeds, manifest.inputs, notes=manifest.notes)
    save_tensors(copy, artifact.tensors, again)
    return copy
