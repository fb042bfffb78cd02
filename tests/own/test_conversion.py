"""A pipeline that none of our code made becomes a folder that diffusers loads, and says what that cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import quest
from quest.artifacts import ArtifactError, Manifest
from quest.cli import main
from quest.config.methods import METHODS
from quest.config.values import ConfigError
from quest.deploy.packed.assembly import packed_layers
from quest.diffusion import denoiser as denoisers
from quest.diffusion.sampling import sample
from quest.own import plan
from quest.sources import pipelines
from tests.own import brought

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK: dict[str, Any] = {"method": "nearest", "steps": 2, "settings": brought.FEW, "device": "cpu"}


def command(*arguments: str | Path) -> Result:
    """`quest quantize` with few of everything."""
    Path("few.yaml").write_text(yaml.safe_dump(brought.FEW))
    given = ["--quiet", "quantize", *map(str, arguments), "--settings", "few.yaml", "--device", "cpu"]
    return CliRunner().invoke(main, given)


def draws(folder: Path, **call: Any) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert packed_layers(pipeline.unet), "the weights are integers"
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=2, output_type="np", **call).images


def test_from_a_folder_to_a_folder_in_one_command(here: Path) -> None:
    brought.pixels().save_pretrained("theirs")
    done = command("theirs", "--bits", "w4a8", "--steps", "2", "--output", "ours", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert draws(here / "ours", batch_size=3).shape == (3, 8, 8, 1)
    assert report["closeness"]["images"] == 2
    assert 3 < report["closeness"]["worst_psnr"] <= report["closeness"]["psnr"] < 60
    assert report["size"]["network_mib"] < report["size"]["float32_mib"] / 3
    assert report["cuts"] == []
    assert not (here / "ours.work").exists(), "what was kept on the way is removed"
    assert json.loads(Path("ours/report.json").read_text()) == report
    page = Path("ours/card.html").read_text()
    words = Path("ours/README.md").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == [], "the page needs nothing else"
    assert len(page) < 100_000
    psnr = f"{report['closeness']['psnr']:.2f}"
    for said in (psnr, "packed, in floats", "biases of layers", "&quot;iterations&quot;: 2", "What was cut"):
        assert said in page, said
        assert said.replace("&quot;", '"') in words, said
    assert yaml.safe_load(words.split("---")[1])["library_name"] == "diffusers"


def test_the_same_in_five_lines_of_python(here: Path) -> None:
    """And closeness is of what the folder draws, from the seeds that full precision draws."""
    pipeline = brought.pixels()
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    made = quest.convert(pipeline, "ours", bits="w8a8", **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.unet.state_dict().items())
    assert made.report["model"] == "DDPMPipeline"
    assert made.report["closeness"]["psnr"] > 25, "8 bits are close"

    source = pipelines.of_pipeline(pipeline)
    own, cpu = brought.FEW["calibration"], torch.device("cpu")
    quantized = quest.quantize(
        source, "w8a8", "nearest", steps=2, calibration=own, quantizer=brought.FEW["quantizer"], device="cpu"
    )
    full = sample(source, source.network, quest.SamplerSettings(steps=2), 0, range(2), None, 2, cpu)
    squares = ((quantized.sample(2).double() - full.double()) / 255).square().mean().item()
    assert made.report["closeness"]["mse"] == pytest.approx(squares, rel=0.02)


def text_folder(here: Path) -> list[str | Path]:
    brought.texts(here / "words").save_pretrained(here / "theirs")
    (here / "prompts.txt").write_text("a\nb\na b\n", encoding="utf-8")
    return [here / "theirs", "--prompts", here / "prompts.txt", "--guidance", "2"]


def network_alone(here: Path) -> list[str | Path]:
    brought.pixels().save_pretrained(here / "whole")
    brought.unet().save_pretrained(here / "theirs")
    return [here / "theirs", "--scheduler", here / "whole/scheduler/scheduler_config.json"]


def network_of_a_pipeline(here: Path) -> list[str | Path]:
    brought.pixels().save_pretrained(here / "theirs")
    return [here / "theirs/unet"]


def published_classes(here: Path) -> list[str | Path]:
    return [GOLDEN / "imagenet_ldm4.ckpt", "--architecture", GOLDEN / "imagenet_ldm4.json", "--classes", "2"]


def artifact(here: Path) -> list[str | Path]:
    denoisers.save(here / "model.safetensors", pipelines.of_pipeline(brought.pixels()), Manifest(kind="model"))
    return [here / "model.safetensors"]


KINDS: list[tuple[Any, str, dict[str, Any]]] = [
    (text_folder, "q-diffusion", {"prompt": ["a", "b"], "guidance_scale": 2.0}),
    (network_alone, "ptqd", {"batch_size": 2}),
    (network_of_a_pipeline, "efficientdm", {"batch_size": 2}),
    (published_classes, "nearest", {"class_labels": [0, 1], "guidance_scale": 1.5}),
    (artifact, "tfmq-dm", {"batch_size": 2}),
]


@pytest.mark.parametrize(("bring", "method", "call"), KINDS)
def test_every_kind_that_is_taken(
    here: Path, bring: Callable[[Path], list[str | Path]], method: str, call: dict[str, Any]
) -> None:
    given = bring(here)
    done = command(*given, "--bits", "w8a8", "--method", method, "--steps", "2", "--output", "ours")
    assert done.exit_code == 0, done.output
    assert "of the same seeds" in done.output
    assert len(draws(here / "ours", **call)) == 2


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"quest"} - {method for _, method, _ in KINDS}))
def test_every_other_method(here: Path, method: str) -> None:
    """Also of a method that is added, whose calls nobody has counted yet."""
    made = quest.convert(brought.pixels(), "ours", bits="w4a8", **{**QUICK, "method": method})
    assert made.report["method"] == method
    assert draws(here / "ours", batch_size=1).shape == (1, 8, 8, 1)


def test_a_budget_is_kept_openly(here: Path, seconds: Callable[[float], None]) -> None:
    seconds(0.5)
    few = {**brought.FEW, "reconstruction": {"iterations": 120, "samples": 4, "batch_size": 2}, "share": 1.0}
    given = QUICK | {"method": "quest", "settings": few}
    with pytest.raises(ConfigError, match=r"--budget: 0.05 minutes; the least that this method takes here is about"):
        quest.convert(brought.pixels(), "ours", budget=0.05, **given)
    made = quest.convert(brought.pixels(), "ours", budget=1, **given)
    (cut,) = [each for each in made.report["cuts"] if each.startswith("reconstruction.iterations")]
    iterations = int(re.fullmatch(r"reconstruction.iterations: (\d+) instead of 120", cut)[1])  # type: ignore[index]
    assert 50 <= iterations < 120
    settings = made.report["settings"]["reconstruction"]
    assert settings["iterations"] == iterations
    assert settings["lr"] == pytest.approx(min(0.1, 0.05 * 120 / iterations)), "fewer steps are larger"
    assert sum(made.report["estimated_seconds"].values()) <= 60
    assert cut in Path("ours/README.md").read_text()


def test_days_are_refused_without_a_budget(here: Path, seconds: Callable[[float], None]) -> None:
    seconds(7200.0)
    with pytest.raises(ConfigError, match="longer than 24 hours: give --budget MINUTES"):
        quest.convert(brought.pixels(), "ours", **QUICK)
    assert not (here / "ours").exists()


def test_memory_cuts_what_is_cached(here: Path) -> None:
    settings = {**brought.FEW, "calibration": {"samples_per_step": 4_096}}
    chosen = plan.Wanted("nearest", "w8a8", quest.SamplerSettings(steps=2), None)
    source = pipelines.of_pipeline(brought.pixels())
    from quest.config.own import own_settings
    from quest.estimate import networks
    from quest.estimate.speed import Speed

    own = own_settings(settings, "test")
    full = plan.settings_for(own, plan.images_of(source), here / "model.safetensors", chosen)
    estimate = plan.Estimate(networks.of(source), full, chosen, Speed(here / "speed.json", torch.device("cpu")))
    whole = estimate.plan(full, full)
    found = plan.fitted(estimate, full, own, None, whole.memory - 2**20)
    assert found.memory <= whole.memory - 2**20
    assert any(cut.startswith("calibration.samples_per_step: ") for cut in found.cuts)
    with pytest.raises(ConfigError, match=r"--memory: .* GiB; the least that this model takes here is about"):
        plan.fitted(estimate, full, own, None, 1000.0)


def test_training_takes_the_memory_that_is_left(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches stay, whatever else has to be cut."""
    from quest.config.own import own_settings
    from quest.estimate import networks
    from quest.estimate.calls import Took
    from quest.estimate.costs import Cost
    from quest.estimate.speed import Speed

    own = own_settings({**brought.FEW, "reconstruction": {"batch_size": 16}}, "test")
    chosen = plan.Wanted("quest", "w8a8", quest.SamplerSettings(steps=2), None)
    source = pipelines.of_pipeline(brought.pixels())
    full = plan.settings_for(own, plan.images_of(source), here / "model.safetensors", chosen)
    estimate = plan.Estimate(networks.of(source), full, chosen, Speed(here / "speed.json", torch.device("cpu")))
    assert estimate.trains
    job = next(job for name, job in estimate._jobs(full) if name == "finetune")
    monkeypatch.setattr(Speed, "took", lambda _self, _network, call, _reference: Took(1.0, 1e9 * (call.kind == "cma")))
    assert estimate._cost(job, but_training=True).memory < estimate._cost(job).memory

    def cost(job: Any, but_training: bool = False) -> Cost:
        gib = {"finetune": 1 if but_training else 10, "reconstruct": job.settings.reconstruction.batch_size / 4}
        return Cost(1.0, 1.0, gib.get(job.rule, 0.5) * 2**30, 0.0, 0.0)

    monkeypatch.setattr(estimate, "_cost", cost)
    assert estimate.plan(full, full).memory == 10 * 2**30
    assert plan.fitted(estimate, full, own, None, 20.0 * 2**30).memory == 10 * 2**30
    found = plan.fitted(estimate, full, own, None, 5.0 * 2**30)
    assert (found.memory, found.cuts) == (5 * 2**30, [])
    found = plan.fitted(estimate, full, own, None, 2.5 * 2**30)
    assert found.memory == 2.5 * 2**30
    assert found.settings.reconstruction.batch_size == 10
    assert not any("tla_batch_size" in cut or "cma_batch_size" in cut for cut in found.cuts)


def test_memory_reaches_training_and_changes_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quest.learning import recomputing

    found, measured = [], []
    monkeypatch.setattr(recomputing.Kept, "blocks_for", lambda kept, _room: measured.append(1) or list(kept.inside))
    given: dict[str, Any] = QUICK | {"method": "quest"}
    for output, memory in (("ours", None), ("theirs", 100.0)):
        made = quest.convert(brought.pixels(), output, memory=memory, **given)
        found.append((draws(here / output, batch_size=2), made.report["cuts"]))
        assert bool(measured) == (memory is not None)
    assert (found[0][0] == found[1][0]).all()
    assert found[0][1] == found[1][1] == []


def test_smaller_batches_where_memory_runs_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quest.stages import reconstruct

    batches = []
    learn = reconstruct.run

    def short(dataset: str, settings: Any, *more: Any) -> None:
        batches.append(settings.reconstruction.batch_size)
        if settings.reconstruction.batch_size > 4:
            raise torch.OutOfMemoryError("out of memory")
        learn(dataset, settings, *more)

    monkeypatch.setattr(reconstruct, "run", short)
    settings = {**brought.FEW, "reconstruction": {"iterations": 1, "samples": 4, "batch_size": 16}}
    made = quest.convert(brought.pixels(), "ours", **(QUICK | {"method": "quest", "settings": settings}))
    assert batches == [16, 8, 4]
    assert made.report["cuts"][-1] == (
        "reconstruction.batch_size 4, since learning the rounding of the weights ran out of memory on cpu"
    )

    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(reconstruct, "run", never)
    told = r"cpu has too little memory even for reconstruction.batch_size 1. What is .* It said: out of memory"
    with pytest.raises(ConfigError, match=told):
        quest.convert(brought.pixels(), "others", **(QUICK | {"method": "quest", "settings": settings}))


def test_an_export_that_is_interrupted_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quest.own import trial

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trial, "drawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quest.convert(brought.pixels(), "ours", **QUICK)
    assert {file.name for file in here.iterdir()} == {"ours.work"}
    quest.convert(brought.pixels(), "ours", **QUICK)
    assert {file.name for file in here.iterdir()} == {"ours"}


def test_what_is_there_is_not_replaced_unless_told(here: Path) -> None:
    (here / "ours").mkdir()
    (here / "ours/thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="the folder is not empty; choose another, or --force"):
        quest.convert("no model is looked for", "ours", **QUICK)
    with pytest.raises(ArtifactError, match="holds no pipeline"):
        quest.convert("no model is looked for", "ours", force=True, **QUICK)
    (here / "theirs.work").mkdir()
    (here / "theirs.work/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"theirs.work: is no work of quest; move it"):
        quest.convert(brought.pixels(), "theirs", **QUICK)
    assert (here / "theirs.work/notes.txt").read_text() == "mine"


def test_one_process_at_an_output(here: Path) -> None:
    from quest.own.work import working

    with (
        working(here / "ours"),
        pytest.raises(ArtifactError, match="another process is quantizing to"),
    ):
        quest.convert(brought.pixels(), "ours", **QUICK)
