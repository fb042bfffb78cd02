"""The embedded transformer, random weights at its own sizes: a folder that diffusers loads, integers, ONNX, a card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

import quest
from quest.artifacts import Manifest, load_tensors
from quest.bench import deploy
from quest.bench.deploy import Row
from quest.cli import main
from quest.config.dataset import DatasetSettings, load_dataset
from quest.deploy import kernels
from quest.deploy.kernels import cpu, reference
from quest.deploy.kernels.integers import Integers, of_layer
from quest.deploy.packed.assembly import packed, packed_layers
from quest.deploy.packed.layers import ActivationGrid
from quest.deploy.quantized import QuantizedModel
from quest.diffusion import denoiser as denoisers
from quest.diffusion.conditioners import ClassLabels
from quest.diffusion.conditions import EVALUATION
from quest.diffusion.denoiser import Denoiser
from quest.diffusion.first_stage import FirstStage
from quest.embedded.training.denoiser import build_transformer
from quest.noise import SampleNoise
from quest.quantization.attention import QuantizedAttention
from quest.stages import sample

CPU = torch.device("cpu")
PROTOCOL = load_dataset("shapes-dit")
SHAPE, CLASSES, BLOCKS = (3, 16, 16), 24, 2
FEW: dict[str, Any] = {
    "steps": 4,
    "guidance_scale": 1.75,
    "calibration": {"steps": 4, "samples_per_step": 2},
    "quantizer": {
        "weight_search": "max",
        "activation_search": "max",
        "activation_granularity": {"4": "per_tensor", "8": "per_tensor"},
    },
    "settings": {"sets": 2},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a transformer with the layers of the protocol's, in two blocks instead of seven."""
    torch.manual_seed(0)
    assert PROTOCOL.pretrain is not None
    assert PROTOCOL.pretrain.transformer is not None
    sizes = PROTOCOL.pretrain.transformer.model_copy(update={"layers": BLOCKS})
    network = build_transformer(sizes, SHAPE[0], SHAPE[1], CLASSES).eval()
    for parameter in network.parameters():
        if not parameter.any():  # blocks begin as the identity
            nn.init.normal_(parameter, std=0.05)
    autoencoder: Any = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=SHAPE[0],
        num_vq_embeddings=64,
        norm_num_groups=4,
    )
    schedule = DDIMScheduler(clip_sample=False, steps_offset=1)
    model = Denoiser(network, schedule, FirstStage(autoencoder.eval(), 0.5), ClassLabels(CLASSES))
    path = tmp_path_factory.mktemp("dit") / "denoiser.safetensors"
    denoisers.save(path, model, Manifest(kind="model"))
    return path


@pytest.fixture(scope="module")
def make(model_file: Path) -> Callable[[str], QuantizedModel]:
    """It quantized to nearest, by its bits."""
    made: dict[str, QuantizedModel] = {}

    def quantized(bits: str) -> QuantizedModel:
        if bits not in made:
            made[bits] = quest.quantize(denoisers.load(model_file), bits, "nearest", **FEW)
        return made[bits]

    return quantized


@pytest.fixture(scope="module")
def folder(make: Callable[[str], QuantizedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quest.export(make("w4a8"), tmp_path_factory.mktemp("exported") / "dit", base_model="someone/dit")


def opened(path: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(count: int) -> Tensor:
    """Of the images that a model draws by seed 0."""
    return SampleNoise(EVALUATION, 0, range(count), SHAPE).draw()


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a8"])
def test_codes_and_scales_are_those_of_the_checkpoint(
    bits: str, make: Callable[[str], QuantizedModel], tmp_path: Path
) -> None:
    model = make(bits)
    transformer = opened(quest.export(model, tmp_path / "out")).transformer
    layers, found = model.network.layers(), packed_layers(transformer)
    assert list(layers) == list(found)
    for name, layer in layers.items():
        codes = torch.cat([quantizer.codes(weight) for quantizer, weight in layer.weight_parts()], 1)
        assert torch.equal(found[name].whole_codes(), codes), name
        assert torch.equal(found[name].weight, layer.quantized_weight()), name
    x, labels = noise(3), torch.tensor([0, 7, CLASSES])
    for step, timestep in enumerate(model.around.sampler(model.sampler).timesteps.tolist()):
        model.network.set_step(step)
        times = torch.full((3,), timestep)
        expected = model.network(x, times, labels).sample
        torch.testing.assert_close(transformer(x, times, labels).sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1.75])
def test_images_are_those_of_our_sampler(scale: float, make: Callable[[str], QuantizedModel], folder: Path) -> None:
    model, classes = make("w4a8"), [0, 5, 9, 23]
    sampler = model.sampler.model_copy(update={"guidance_scale": scale})
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "QuestDiTPipeline"
    given = {"class_labels": classes, "num_inference_steps": 4, "guidance_scale": scale, "output_type": "pt"}
    drawn = pipeline(latents=noise(4), **given).images
    expected = replace(model, checkpoint=replace(model.checkpoint, sampler=sampler)).sample(classes)
    assert int(((drawn * 255).round() - expected).abs().max()) <= 1
    other = pipeline(latents=noise(4), **given | {"class_labels": [1, 5, 9, 23]}).images
    assert not torch.equal(other[0], drawn[0])
    torch.testing.assert_close(other[1:], drawn[1:])


def test_classes_that_it_has_not(folder: Path) -> None:
    pipeline = opened(folder)
    with pytest.raises(ValueError, match="class_labels: found 24; the model has classes 0 to 23"):
        pipeline(class_labels=[24], num_inference_steps=1)
    with pytest.raises(ValueError, match="class_labels: found none, and expected one for each image"):
        pipeline(num_inference_steps=1)


def test_what_is_in_the_folder(make: Callable[[str], QuantizedModel], folder: Path, tmp_path: Path) -> None:
    model = make("w4a8")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "QuestDiTPipeline"
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert "class_embedding" not in index
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    timesteps = model.around.sampler(model.sampler).timesteps
    assert torch.equal(stored["quest_tables.timesteps"], timesteps)
    sites = model.network.sites()
    assert stored["quest_tables.scales"].shape == (2, sum(site.scale[0].numel() for site in sites.values()))
    account = model.account()["weight_mib"] * 2**20
    assert 0.97 * account < file.stat().st_size < 1.03 * account
    card = (folder / "README.md").read_text()
    assert "W4A8 of someone/dit" in card
    assert "class_labels=[0, 1, 2, 3], guidance_scale=1.75" in card
    assert "the first stage, the class embedding" in card
    pipeline = opened(folder)
    pipeline.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again/transformer/diffusion_pytorch_model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[name], stored[name]) for name in stored)
    given = {"class_labels": [3], "num_inference_steps": 2, "output_type": "pt"}
    torch.testing.assert_close(
        opened(tmp_path / "again")(latents=noise(1), **given).images, pipeline(latents=noise(1), **given).images
    )


def test_the_lines_of_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder.parent)
    done: dict[str, Any] = {}
    exec(lines.replace('"this folder"', f'"{folder.name}"'), done)
    assert [image.size for image in done["images"]] == [(32, 32)] * 4


def test_the_commands(make: Callable[[str], QuantizedModel], model_file: Path, tmp_path: Path) -> None:
    quest.save(make("w4a8"), tmp_path / "w4a8.safetensors")
    given = [str(tmp_path / "w4a8.safetensors"), "--model", str(model_file), "--output", str(tmp_path / "out")]
    run = CliRunner().invoke(main, ["export", *given])
    assert run.exit_code == 0, run.output
    assert "MiB of packed network; `import quest`" in run.output
    run = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "DiTTransformer2DModel" in run.output


def test_any_scheduler_takes_the_nearest_scales(folder: Path) -> None:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    pipeline = opened(folder)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    drawn = pipeline(class_labels=[0, 1], num_inference_steps=3, guidance_scale=2.0, output_type="np").images
    assert drawn.shape == (2, 32, 32, 3)


def test_a_pipeline_multiplies_integers(folder: Path) -> None:
    pipeline = opened(folder)
    given = {"class_labels": [0, 1], "num_inference_steps": 4, "guidance_scale": 1.75, "output_type": "pt"}
    expected = pipeline(latents=noise(2), **given).images
    report = quest.use_kernels(pipeline, "reference")
    assert set(report.values()) == {"reference"}
    assert float((pipeline(latents=noise(2), **given).images - expected).abs().mean()) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
def test_integers_of_every_layer(bits: str, make: Callable[[str], QuantizedModel]) -> None:
    """The convolution of patches, and linear layers of tokens and of one vector a sample: their sums exactly, and what
    the quantized layer gives."""
    network, (unpacked, inputs) = make(bits).network, called(make(bits))
    layers = packed_layers(unpacked)
    assert set(inputs) == set(network.layers()) == set(layers)
    assert {(len(layer.description.shape), inputs[name].ndim) for name, layer in layers.items()} == {
        (4, 4),
        (2, 3),
        (2, 2),
    }
    for kernel in [each for each in (cpu, reference) if each.lacking(CPU) is None]:
        for name, layer in layers.items():
            assert isinstance(layer.input, ActivationGrid)
            integers, (_, zero_point) = of_layer(layer), layer.input.now(CPU)
            whole = layer.input.codes(inputs[name]) - zero_point
            assert kernel.refuses(integers) is None
            plain = Integers(**(vars(integers) | {"scale": torch.ones_like(integers.scale), "bias": None}))
            found = kernel.make(plain)(whole, torch.ones(1), zero_point.view(1))
            assert torch.equal(found.double(), reference.sums(whole, plain)), name
    for kernel in (name for name in kernels.KERNELS if kernels.lacking(name, CPU) is None):
        assert set(kernels.use_kernels(unpacked, kernel).values()) == {kernel}
        for name, layer in layers.items():
            assert apart(layer(inputs[name]), network.layers()[name](inputs[name])) < 1e-5, (name, kernel)


@torch.no_grad()
@pytest.mark.parametrize("bits", ["w8a8", "w4a4"])
def test_products_of_attention(bits: str, make: Callable[[str], QuantizedModel]) -> None:
    """No kernel computes them; packed they are those of the quantized network to the last bit, on as many levels."""
    network, (unpacked, _) = make(bits).network.network, called(make(bits))
    found = {name: each for name, each in unpacked.named_modules() if isinstance(each, QuantizedAttention)}
    theirs = {name: each for name, each in network.named_modules() if isinstance(each, QuantizedAttention)}
    assert found.keys() == theirs.keys()
    assert len(found) == BLOCKS
    q, k, v = torch.randn(3, 8, 64, 32, generator=torch.Generator().manual_seed(0))  # 2 samples, 4 heads, 64 tokens
    for name, attention in found.items():
        assert torch.equal(attention.forward(q, k, v, 32**-0.5), theirs[name].forward(q, k, v, 32**-0.5)), name
        assert len(attention.get_submodule("q")(q).unique()) <= 2 ** int(bits[-1])


def called(model: QuantizedModel) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model's packed network at its second step, and what each of its layers is given in a call there."""
    timesteps = model.around.sampler(model.sampler).timesteps.tolist()
    network, tables = packed(model.network, timesteps, follow=False)
    tables.use(torch.tensor([1]))
    model.network.set_step(1)
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _layer, args: inputs.update({name: args[0]})

    for name, layer in packed_layers(network).items():
        layer.register_forward_pre_hook(note(name))
    network(noise(3), torch.full((3,), timesteps[1]), torch.tensor([0, 7, CLASSES]))
    return network, dict(inputs)


def test_samples_through_integers(
    make: Callable[[str], QuantizedModel],
    make_settings: Callable[..., DatasetSettings],
    model_file: Path,
    tmp_path: Path,
) -> None:
    quest.save(make("w4a8"), tmp_path / "checkpoint.safetensors")
    settings = make_settings(
        image_size=32,
        image_channels=3,
        condition={"classes": CLASSES},
        sampler={"steps": 4, "guidance_scale": 1.75},
        evaluation={"shards": 1},
    )
    images, counted = {}, {}
    for backend in ("fake", "integer"):
        file = tmp_path / f"{backend}.safetensors"
        sample.run("shapes-dit", settings, model_file, tmp_path / "checkpoint.safetensors", 0, 0, file, CPU, backend)  # type: ignore[arg-type]
        artifact = load_tensors(file, "samples")
        images[backend], counted[backend] = artifact.tensors["images"].int(), artifact.manifest.notes.get("kernels")
    assert images["fake"].shape == (6, 3, 32, 32)
    difference = (images["integer"] - images["fake"]).abs()
    assert float(difference.float().mean()) <= 0.25
    assert counted["integer"] == {"reference" if cpu.lacking(CPU) else "cpu": len(make("w4a8").network.layers())}


def test_onnx(make: Callable[[str], QuantizedModel], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from quest.deploy.onnx import export_onnx

    model = make("w8a8")
    session = runtime.InferenceSession(export_onnx(model, tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["sample", "timestep", "class_labels"]
    for step, timestep in enumerate(model.around.sampler(model.sampler).timesteps.tolist()):
        x, labels = noise(step + 1), torch.arange(step + 1)
        model.network.set_step(step)
        with torch.no_grad():
            expected = model.network(x, torch.full((len(x),), timestep), labels).sample
        given = {"sample": x.numpy(), "timestep": torch.tensor([timestep]).numpy(), "class_labels": labels.numpy()}
        assert apart(torch.from_numpy(session.run(None, given)[0]), expected) < 0.01


def test_the_benchmark(model_file: Path) -> None:
    rows = list(deploy.on_cpu(denoisers.load(model_file), "w8a8", 2, repeats=1, bf16=False))
    measured = {row.what: row for row in rows if isinstance(row, Row)}
    own = ["float32", "w8a8, simulated", "w8a8 packed, floats", "w8a8 packed, integers"]
    assert list(measured)[: len(own)] == own
    said = [row for row in rows if isinstance(row, str)]
    distance = {line.partition(":")[0]: float(line.split()[-7]) for line in said if line.endswith("output apart")}
    assert distance["w8a8 packed, integers"] < 0.02


def test_an_artifact_becomes_a_folder_in_one_go(model_file: Path, tmp_path: Path) -> None:
    settings = {"images": 4, "calibration": FEW["calibration"], "quantizer": FEW["quantizer"]}
    quest.convert(model_file, tmp_path / "ours", bits="w4a8", method="nearest", steps=4, settings=settings)
    report = json.loads((tmp_path / "ours/report.json").read_text())
    assert report["method"] == "nearest"
    assert opened(tmp_path / "ours")(class_labels=[0], num_inference_steps=2, output_type="np").images.shape == (
        1,
        32,
        32,
        3,
    )
