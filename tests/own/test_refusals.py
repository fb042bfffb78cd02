"""What cannot be quantized is refused before any work, by one message that names it and says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

import quest
from quest.artifacts import ArtifactError
from tests.own import brought
from tests.own.test_conversion import QUICK, command


def index(folder: Path, **parts: list[str | None]) -> Path:
    """A pipeline's folder with nothing but its index."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Theirs", **parts}))
    return folder


def config(folder: Path, part: str, **content: Any) -> None:
    (folder / part).mkdir(exist_ok=True)
    (folder / part / "config.json").write_text(json.dumps(content))


def sdxl(here: Path) -> Path:
    parts: dict[str, Any] = {name: ["transformers", "CLIPTextModel"] for name in ("text_encoder", "text_encoder_2")}
    folder = index(here / "sdxl", unet=["diffusers", "UNet2DConditionModel"], **parts)
    config(folder, "unet", _class_name="UNet2DConditionModel", addition_embed_type="text_time")
    return folder


def flux(here: Path) -> Path:
    folder = index(here / "flux", transformer=["diffusers", "FluxTransformer2DModel"])
    config(folder, "transformer", _class_name="FluxTransformer2DModel")
    return folder


def video(here: Path) -> Path:
    folder = index(here / "video", unet=["diffusers", "UNet3DConditionModel"])
    config(folder, "unet", _class_name="UNet3DConditionModel")
    return folder


def classes(here: Path) -> Path:
    folder = here / "classes"
    brought.pixels().save_pretrained(folder)
    brought.unet(class_embed_type="timestep").save_pretrained(folder / "unet")
    return folder


def transformer(here: Path) -> Path:
    config(here, "alone", _class_name="DiTTransformer2DModel")
    return here / "alone"


def flow(here: Path) -> Path:
    folder = here / "flow"
    brought.pixels().save_pretrained(folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    return folder


def alone(here: Path) -> Path:
    brought.unet().save_pretrained(here / "alone")
    return here / "alone"


def packed(here: Path) -> Path:
    folder = here / "packed"
    brought.pixels().save_pretrained(folder)
    file = folder / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "quest"}}))
    return folder


@pytest.mark.parametrize(
    ("bring", "message"),
    [
        (
            sdxl,
            "a second text encoder and a condition added to the time embedding (addition_embed_type) cannot be calib",
        ),
        (
            flux,
            "a FluxTransformer2DModel in a Theirs cannot be calibrated here; expected the folder of a whole pipeline",
        ),
        (video, "architecture: unknown 'UNet3DConditionModel'"),
        (classes, "classes that are embedded otherwise than by their number (class_embed_type) cannot be calibrated"),
        (transformer, "a DiTTransformer2DModel without its pipeline cannot be calibrated here; expected the folder"),
        (flow, "flow matching"),
        (alone, "a U-Net alone does not say on which noise schedule it was trained"),
        (packed, "quantized already (quest); expected a model in full precision"),
        (lambda here: here / "nowhere", "nowhere: no such file; put the folder"),
        (lambda here: here / "some.ckpt", "some.ckpt: no such file"),
    ],
)
def test_models(here: Path, bring: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(ArtifactError) as found:
        quest.convert(bring(here), here / "ours", **QUICK)
    assert message in str(found.value)
    assert not list(here.glob("ours*")), "nothing was begun"


def test_a_hub_id_without_a_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match=r"nobody/nothing: not a path here, and the hub did not give it"):
        quest.convert("nobody/nothing", "ours", **QUICK)


def test_a_pipeline_in_memory(here: Path) -> None:
    pipeline = brought.pixels()
    pipeline.register_modules(unet=brought.unet(class_embed_type="timestep"))
    with pytest.raises(ArtifactError, match="DDPMPipeline: classes that are embedded otherwise than by their number"):
        quest.convert(pipeline, "ours", **QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "quset"}, "--method: unknown 'quset' (did you mean 'quest'?)"),
        ({"bits": "w4"}, "bits: 'w4' is not w<weight bits>a<activation bits>"),
        ({"budget": 0.0}, "--budget: found 0; expected more than 0"),
        ({"steps": 3}, "sampler.steps is 3, which does not divide the 1000 timesteps of the model; take 2 or 4"),
        ({"guidance_scale": 3.0}, "--guidance: found 3, but the model takes no condition; leave it out"),
        ({"prompts": ["a"]}, "--prompts: given, but the model takes no condition; leave it out"),
        ({"settings": {"image": 3}}, "settings: image: unknown 'image' (did you mean 'images'?)"),
        ({"settings": {"size": 16}}, "size: found 16, but this model draws images of one size here; leave it out"),
        ({"sampler": "plms"}, "sampler.kind is plms, which leaves the predicted image as it is, but the model's"),
    ],
)
def test_wishes(here: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        quest.convert(brought.pixels(), "ours", **(QUICK | changes))
    assert not list(here.glob("ours*")), "nothing was begun"


def test_prompts(here: Path) -> None:
    pipeline = brought.texts(here / "words")
    with pytest.raises(ValueError, match="--prompts: missing; the model draws what a text says"):
        quest.convert(pipeline, "ours", **QUICK)
    (here / "prompts.txt").write_bytes("Käse\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"--prompts: prompts.txt: byte 1 is not UTF-8; .* saved as UTF-8"):
        quest.convert(pipeline, "ours", prompts="prompts.txt", **QUICK)


def test_what_could_not_be_packed(here: Path) -> None:
    with pytest.raises(ValueError, match=r"--method: ptqd corrects the predicted noise, .* predicts v_prediction"):
        quest.convert(brought.texts(here / "words"), "ours", prompts=["a"], **{**QUICK, "method": "ptqd"})


def test_a_misspelled_method_by_command(here: Path) -> None:
    done = command("nowhere", "--method", "quset", "--output", "ours")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: --method: unknown 'quset' (did you mean 'quest'?)")
