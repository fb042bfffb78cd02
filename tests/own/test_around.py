"""Pipelines that draw by themselves become folders that diffusers loads: transformers, SDXL, classes by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file

import quest
from quest.artifacts import ArtifactError
from quest.config.methods import METHODS
from quest.config.values import ConfigError
from quest.deploy.packed.assembly import packed_layers
from quest.own.drawing import Pipeline
from quest.own.wishes import FROM_CALLS
from tests.own import brought, published
from tests.own.test_conversion import command

# What learns by units and by stages, once with all that PixArt is told; nothing is learned of the others.
LEARNED = {"dit": "q-diffusion", "pixart-alpha": "quest", "flux": "quest"}
TEXTS = ["a", "b", "a b"]


def wishes(kind: str, method: str | None = None) -> dict[str, Any]:
    size = {"size": published.SIZES[kind]} if kind in published.SIZES else {}
    of = {"classes": 3} if kind in ("dit", "classes") else {"prompts": TEXTS}
    method = method or LEARNED.get(kind, "nearest")
    return {"bits": "w8a8", "method": method, "steps": 2, "settings": brought.FEW | size, "device": "cpu", **of}


@pytest.mark.parametrize("kind", [kind for kind in published.MAKE if kind != "flux-schnell"])
def test_from_a_folder_to_a_folder(kind: str, here: Path) -> None:
    theirs = published.MAKE[kind](here / "words")
    theirs.save_pretrained("theirs")
    made = quest.convert("theirs", "ours", **wishes(kind))
    report = made.report
    assert report["closeness"]["images"] == 2
    assert 20 < report["closeness"]["worst_psnr"] <= report["closeness"]["psnr"] < 70, "8 bits are close, not equal"
    assert report["size"]["weight_bits"] < 9
    assert report["scheduler"] == report["calibrated_by"] == type(theirs.scheduler).__name__
    assert not (here / "ours.work").exists()

    pipeline: Any = DiffusionPipeline.from_pretrained("ours", local_files_only=True)
    assert type(pipeline).__name__ == published.CLASS[kind]
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    assert packed_layers(getattr(pipeline, part)), "the weights are integers"
    pipeline.set_progress_bar_config(disable=True)
    call = report["settings"]["sampler"] | {"num_inference_steps": 3}
    what = {"class_labels": [0, 1]} if kind in ("dit", "classes") else {"prompt": ["a", "b"]}
    images = pipeline(**what, **call, output_type="np").images
    assert images.shape[0] == 2
    assert images.std() > 0.01
    # All that is not the network is the pipeline's own, byte for byte.
    others = {file.relative_to("theirs") for file in Path("theirs").rglob("*") if file.is_file()}
    others = {file for file in others if file.parts[0] != part}
    assert all((Path("ours") / file).read_bytes() == (Path("theirs") / file).read_bytes() for file in others)
    named = {row["what"].split(" ")[0] for row in report["not_quantized"]}
    assert {file.parts[0] for file in others if len(file.parts) > 1} <= named, "each part that stays is named"
    said = Path("ours/README.md").read_text()
    assert ('prompt="…"' in said) == ("prompt" in what)
    assert f"for {report['scheduler']} with 2 steps" in said


def test_what_is_told_beside_samples_is_left(here: Path) -> None:
    """PixArt-α's embedding of the two numbers of a size takes two rows a sample: it is said to stay as it is."""
    published.MAKE["pixart-alpha"](here / "words").save_pretrained("theirs")
    quest.convert("theirs", "ours", **wishes("pixart-alpha", "nearest"))
    kept = load_file("ours/transformer/diffusion_pytorch_model.safetensors")
    size = "adaln_single.emb.resolution_embedder.linear_1"
    assert f"{size}.weight" in kept
    assert f"{size}.codes" not in kept
    assert "adaln_single.emb.aspect_ratio_embedder.linear_1.codes" in kept
    assert "without layers of several rows a sample" in Path("ours/README.md").read_text()


def classes_folder(here: Path) -> list[Any]:
    published.classes(here).save_pretrained(here / "theirs")
    return [here / "theirs"]


def classes_alone(here: Path) -> list[Any]:
    published.classes(here).save_pretrained(here / "whole")
    brought.unet(num_class_embeds=3).save_pretrained(here / "theirs")
    return [here / "theirs", "--scheduler", here / "whole/scheduler/scheduler_config.json"]


def transformer_of_a_pipeline(here: Path) -> list[Any]:
    published.dit(here).save_pretrained(here / "theirs")
    return [here / "theirs/transformer", "--classes", "2"]


@pytest.mark.parametrize("bring", [classes_folder, classes_alone, transformer_of_a_pipeline])
def test_by_command(here: Path, bring: Any) -> None:
    """Classes by diffusers' own embedding, of which diffusers has no pipeline, get one."""
    done = command(*bring(here), "--bits", "w8a8", "--method", "nearest", "--steps", "2", "--output", "ours")
    assert done.exit_code == 0, done.output
    pipeline: Any = DiffusionPipeline.from_pretrained("ours", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(class_labels=[1, 0], num_inference_steps=2, output_type="np").images) == 2


def test_a_pipeline_in_memory_stays_as_it_is(here: Path) -> None:
    pipeline = published.classes(here)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    made = quest.convert(pipeline, "ours", **wishes("classes"))
    assert made.report["model"] == "DDPMPipeline"
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_classes_draw_what_a_loop_over_the_scheduler_draws(here: Path) -> None:
    """The pipeline that quest adds, against the few lines of which diffusers' tutorials consist."""
    pipeline: Any = published.of_classes(here)
    scheduler, labels = pipeline.scheduler, torch.tensor([2, 0])
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pipeline([2, 0], 4, latents=x, generator=torch.Generator().manual_seed(1), output_type="pt").images
    scheduler.set_timesteps(4)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t, class_labels=labels).sample, t, x, generator=noise).prev_sample
    torch.testing.assert_close(found, (x / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match="class_labels: found 3; the model has classes 0 to 2"):
        pipeline([3])


def test_latents_of_classes_are_decoded(here: Path) -> None:
    """By the first stage's own scale."""
    latents, stage = brought.unet(num_class_embeds=3, in_channels=4, out_channels=4), published.kl(scaling_factor=0.5)
    pipeline = quest_pipeline(latents, stage)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latent: Any = pipeline([1], 2, latents=noise, output_type="latent")
    drawn, images = latent.images, pipeline([1], 2, latents=noise, output_type="pt").images
    with torch.no_grad():
        decoded: Any = stage.decode(drawn / 0.5)
    expected = (decoded.sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    made = quest.convert(pipeline, "ours", **wishes("classes"))
    assert made.report["closeness"]["psnr"] > 20
    assert (here / "ours/vqvae/config.json").is_file()


def quest_pipeline(unet: Any, stage: Any) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from quest.deploy.packed.pipelines import QuestClassPipeline

    return QuestClassPipeline(unet, DDIMScheduler(clip_sample=False), stage)


def test_it_goes_on_after_a_kill(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published.dit(here).save_pretrained("theirs")
    whole = quest.convert("theirs", "whole", **wishes("dit", "quest"))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("quest.own.trial.speed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quest.convert("theirs", "ours", **wishes("dit", "quest"))
    assert not (here / "ours").exists()
    monkeypatch.setattr(Pipeline, "record", interrupted)  # nothing is recorded or learned again
    monkeypatch.setattr("quest.methods.quest.quantize", interrupted)
    made = quest.convert("theirs", "ours", **wishes("dit", "quest"))
    assert made.report["closeness"] == whole.report["closeness"]


def test_methods(here: Path) -> None:
    """What draws with the network itself is refused, before anything is begun."""
    published.dit(here).save_pretrained("theirs")
    for method in sorted(set(METHODS) - set(FROM_CALLS)):
        with pytest.raises(ConfigError, match=f"--method: {method} cannot learn from a pipeline that draws by itself"):
            quest.convert("theirs", "ours", **wishes("dit", method))
    assert not list(here.glob("ours*")), "nothing was begun"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampler": "ddim"},
            "--sampler: found ddim, but this pipeline draws by its own call and scheduler (DDIMSched",
        ),
        ({"eta": 1.0}, "--eta: found 1.0, but this pipeline draws by its own call"),
        ({"prompts": ["a"], "classes": None}, "--prompts: given, but the model takes --classes; leave it out"),
        ({"classes": 1001}, "--classes: found 1001; the model has 1000"),
        ({"settings": brought.FEW | {"size": 16}}, "size: found 16, but a model of classes draws images of one size"),
    ],
)
def test_wishes_of_a_pipeline(here: Path, changes: dict[str, Any], message: str) -> None:
    published.dit(here).save_pretrained("theirs")
    with pytest.raises(ConfigError) as found:
        quest.convert("theirs", "ours", **(wishes("dit") | changes))
    assert message in str(found.value)
    assert not list(here.glob("ours*")), "nothing was begun"


def test_guidance_without_a_class_for_none(here: Path) -> None:
    with pytest.raises(ConfigError, match="--guidance: found 2, but diffusers' class embedding has no class for none"):
        quest.convert(published.classes(here), "ours", guidance_scale=2.0, **wishes("classes"))


def test_prompts_are_asked_for(here: Path) -> None:
    published.MAKE["sdxl"](here / "words").save_pretrained("theirs")
    with pytest.raises(ConfigError, match="--prompts: missing; the model draws what a text says"):
        quest.convert("theirs", "ours", **{**wishes("sdxl"), "prompts": None})


def test_a_folder_that_is_damaged(here: Path) -> None:
    published.dit(here).save_pretrained("theirs")
    (file,) = Path("theirs/transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="theirs: diffusers cannot read it"):
        quest.convert("theirs", "ours", **wishes("dit"))
    assert not list(here.glob("ours*")), "nothing was begun"
