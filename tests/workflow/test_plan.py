"""What Snakemake would run, planned in this process: jobs, their files and settings, errors of the configuration."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import Plan, Project
from snakemake.cli import parse_config
from snakemake.exceptions import WorkflowError

from quest import stages
from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.methods import METHODS
from quest.config.quantizer import OF_WEIGHTS
from quest.config.reading import validate
from quest.config.run import load
from quest.config.values import FULL_PRECISION
from quest.studies import STUDIES

ROOT = Path(__file__).parents[2]


def test_jobs_ask_for_the_gpus_that_the_run_says(project: Project) -> None:
    """Not for those of the machine that plans: a cluster's login node has none."""
    for gpus in (0, 2):
        plan = Plan(project, config={"gpus": gpus})
        asked = {job.rule.name: job.resources.get("gpu") for job in plan.jobs}
        assert asked["sample"] == asked["finetune"] == gpus
        assert not asked["table"]


def test_the_default_run(default_project: Project) -> None:
    run = load(ROOT / "config" / "config.yaml")
    quantized = sum(1 for cell in run.cells() if cell.method != FULL_PRECISION) * len(run.run.seeds)
    rules = Plan(default_project).rules()
    for name in ("reference", "table", "write_table", "figures", "track"):
        assert rules[name] == len(run.datasets)
    assert rules["finetune"] == quantized * len(run.datasets)
    assert rules["measure"] == rules["score"] == (quantized + len(run.run.seeds)) * len(run.datasets)
    assert rules["sample"] == sum(
        (quantized + len(run.run.seeds)) * settings.evaluation.shards for settings in run.datasets.values()
    )


def test_a_run(project: Project) -> None:
    assert Plan(project).rules() == {
        "reference": 1,
        "calibrate": 1,
        "reconstruct": 2,  # of 8 and 4 bits; shared by the cells of w4a8 and w4a4
        "finetune": 6,
        "sample": 14,
        "preview": 7,
        "measure": 7,
        "score": 7,
        "table": 1,
        "write_table": 1,
        "figures": 1,
        "track": 1,
    }


def test_studies_run_only_when_they_are_asked_for(project: Project) -> None:
    assert "analyse" not in Plan(project).rules()
    plan = Plan(project, targets=("analyses",))
    assert plan.rules()["analyse"] == len([study for study in STUDIES.values() if not study.by_name]) == 10
    files = {
        "model": "data/models/digits/denoiser.safetensors",
        "calibration": "results/calibration/digits/seed0.safetensors",
        "reconstruction": "results/reconstruction/digits/blocks-common-w4-seed0.safetensors",
        "checkpoint": "results/finetune/digits/quest-w4a4-seed0.safetensors",
    }
    job = plan.job("results/analysis/digits/errors.csv")
    assert " ".join(f"--{name} {file}" for name, file in files.items()) in job.shellcmd
    assert set(plan.settings("results/analysis/digits/errors.csv")["methods"]) == {"quest"}
    assert list(plan.job("results/analysis/digits/tokens.png").input) == [files["model"]]
    assert plan.job("results/analysis/digits/scales.svg").shellcmd.count(" --checkpoint ") == 2
    of_eight = files["reconstruction"].replace("-w4-", "-w8-")
    assert plan.job("results/analysis/digits/sensitivity.csv").input.reconstruction == of_eight
    both = [files["reconstruction"], files["reconstruction"].replace("/blocks-", "/temporal-")]
    offsets = [each.replace("-w4-", f"-{bits}-") for bits in ("w8", "w4") for each in both]
    assert list(plan.job("results/analysis/digits/offsets.csv").input.reconstructions) == offsets


def test_axes_multiply(project: Project) -> None:
    rules = Plan(project, {"methods": ["nearest"], "bits": ["w4a4"], "seeds": [0, 1]}).rules()
    assert "reconstruct" not in rules  # nearest does not start from it
    assert (rules["calibrate"], rules["finetune"], rules["sample"], rules["measure"]) == (2, 2, 8, 4)
    assert (rules["table"], rules["figures"]) == (1, 1)


def test_seeds_that_share_a_chain_are_sampled_with_its_checkpoints(project: Project) -> None:
    plan = Plan(project, {"seeds": [3, 4, 5], "chains": 1, "tables": ["levels"]})
    rules = plan.rules()
    assert (rules["calibrate"], rules["reconstruct"], rules["finetune"]) == (1, 2, 6 + 3)
    assert (rules["sample"], rules["measure"]) == (3 * 2 * (1 + 6 + 3), 3 * (1 + 6 + 3))
    option = " --checkpoint results/finetune/digits/quest-w4a8-seed3.safetensors "
    for seed in (3, 4, 5):
        sample = plan.job(f"results/samples/digits/quest-w4a8-seed{seed}.0.safetensors").shellcmd
        measure = plan.job(f"results/metrics/digits/quest-w4a8-seed{seed}.json").shellcmd
        assert f" --seed {seed} " in sample
        assert option in sample
        assert option in measure
        assert f" --full-precision results/samples/digits/fp-w32a32-seed{seed}.0.safetensors " in measure


@pytest.mark.parametrize("target", ["calibrate_all", "reconstruct_all", "finetune_all"])
def test_a_stage_of_the_chain_runs_for_seeds_that_have_one(project: Project, target: str) -> None:
    plan = Plan(project, {"seeds": [3, 4, 5], "chains": 2}, targets=(target,))
    assert {job.wildcards.seed for job in plan.jobs} == {"3", "4"}


def test_the_suite_of_the_shapes_is_whole_chains_and_trains_what_is_missing(default_project: Project) -> None:
    rules = Plan(default_project, {"suite": "shapes"}).rules()
    run = load(ROOT / "config" / "shapes.yaml")
    assert rules["pretrain"] == rules["table"] == len(run.datasets) == 3
    assert rules["pretrain_clip"] == 1
    assert rules["paper"] == 3 * len(run.run.tables)
    assert rules["calibrate"] == 3 * len(run.run.seeds) == 9
    assert rules["measure"] == rules["finetune"] + 9  # and full precision's
    (shards,) = {settings.evaluation.shards for settings in run.datasets.values()}
    assert rules["sample"] == shards * rules["measure"]


def test_the_suite_below_four_bits_is_whole_chains(default_project: Project) -> None:
    rules = Plan(default_project, {"suite": "below-four"}).rules()
    run = load(ROOT / "config" / "below-four.yaml").run
    cells = len(run.datasets) * len(run.seeds) * len(run.methods) * len(run.bits)
    assert rules["finetune"] == cells == 108
    assert rules["measure"] == cells + len(run.datasets) * len(run.seeds)
    assert rules["calibrate"] == len(run.datasets) * len(run.seeds)
    assert rules["reconstruct"] == 2 * rules["calibrate"], "of 3 and 2 bits, shared by the methods that start from it"
    assert rules["table"] == len(run.datasets)


def test_missing_models_are_trained_first(project: Project) -> None:
    (project.root / "data/models/digits/denoiser.safetensors").unlink()
    plan = Plan(project)
    assert plan.rules()["pretrain"] == 1
    assert set(plan.settings("data/models/digits/denoiser.safetensors")) == {
        *("title", "model", "extractor", "image_size", "image_channels"),
        *("real_images", "condition", "pretrain"),
    }


def test_models_that_nothing_trains_are_an_error(project: Project) -> None:
    (project.root / "data/models/digits/denoiser.safetensors").unlink()
    with pytest.raises(Exception, match=r"data/models/digits/denoiser\.safetensors"):
        Plan(project, {"datasets": ["digits-quick"]})


def test_full_precision_has_no_checkpoint(project: Project) -> None:
    plan = Plan(project)
    job = plan.job("results/samples/digits/fp-w32a32-seed0.1.safetensors")
    assert list(job.input) == ["data/models/digits/denoiser.safetensors"]
    assert "--checkpoint" not in job.shellcmd
    assert "--checkpoint" not in plan.job("results/metrics/digits/fp-w32a32-seed0.json").shellcmd


def test_measure_gathers_the_shards_of_its_cell_and_of_full_precision(project: Project) -> None:
    command = Plan(project).job("results/metrics/digits/quest-w4a8-seed0.json").shellcmd
    shards = [f"results/samples/digits/quest-w4a8-seed0.{shard}.safetensors" for shard in (0, 1)]
    teachers = [f"--full-precision results/samples/digits/fp-w32a32-seed0.{shard}.safetensors" for shard in (0, 1)]
    assert command.startswith(f"quest measure digits {' '.join(shards)} ")
    assert f" {' '.join(teachers)} " in command
    assert " --checkpoint results/finetune/digits/quest-w4a8-seed0.safetensors " in command


def test_only_methods_that_start_from_it_are_given_the_reconstruction(project: Project) -> None:
    plan = Plan(project)
    quest = plan.job("results/finetune/digits/quest-w4a8-seed0.safetensors").shellcmd
    nearest = plan.job("results/finetune/digits/nearest-w4a8-seed0.safetensors").shellcmd
    assert " --reconstruction results/reconstruction/digits/blocks-common-w4-seed0.safetensors " in quest
    assert "--reconstruction" not in nearest


def test_each_grouping_of_the_reconstruction_is_made_once_for_each_weight_bit_width(project: Project) -> None:
    plan = Plan(project, {"methods": ["quest", "tfmq-dm"], "bits": ["w4a8", "w4a4"]})
    files = [
        f"results/reconstruction/digits/{grouping}-common-w4-seed0.safetensors" for grouping in ("blocks", "temporal")
    ]
    assert plan.rules()["reconstruct"] == len(files)
    for method, grouping, file in zip(("quest", "tfmq-dm"), ("blocks", "temporal"), files, strict=True):
        assert f" --grouping {grouping} --policy common " in plan.job(file).shellcmd
        for bits in ("w4a8", "w4a4"):
            job = plan.job(f"results/finetune/digits/{method}-{bits}-seed0.safetensors")
            assert f" --reconstruction {file} " in job.shellcmd


def test_each_stage_is_given_the_settings_that_it_depends_on(project: Project) -> None:
    plan = Plan(project)
    always = {"title", "model", "extractor", "image_size", "image_channels"}
    expected = {
        "results/reference/digits/reference.safetensors": {
            *("real_images", "reference_images", "reference_batch", "reference_sha256")
        },
        "results/calibration/digits/seed0.safetensors": {"sampler", "condition", "calibration"},
        "results/reconstruction/digits/blocks-common-w4-seed0.safetensors": {
            *("sampler", "condition", "calibration", "quantizer", "reconstruction"),
        },
        "results/finetune/digits/quest-w4a4-seed0.safetensors": {
            *("sampler", "condition", "calibration", "quantizer", "methods"),
        },
        "results/samples/digits/quest-w4a4-seed0.0.safetensors": {"sampler", "condition", "evaluation"},
        "results/metrics/digits/quest-w4a4-seed0.json": {"evaluation"},
    }
    assert {output: set(plan.settings(output)) - always for output in expected} == expected
    reconstruct = plan.settings("results/reconstruction/digits/blocks-common-w4-seed0.safetensors")
    # Activations are not quantized there.
    assert set(reconstruct["quantizer"]) == set(OF_WEIGHTS), "and no variant may change these"
    assert set(plan.settings("results/finetune/digits/quest-w4a4-seed0.safetensors")["methods"]) == {"quest"}
    assert set(plan.settings("results/finetune/digits/nearest-w4a4-seed0.safetensors")["methods"]) == {"nearest"}


def test_a_variant_is_a_cell_with_settings_of_its_own(project: Project) -> None:
    name = "quest+no-global-loss"
    plan = Plan(project, {"methods": ["quest", name, "quest+nearest-rounding"], "bits": ["w4a4"]})
    assert plan.rules()["reconstruct"] == 1
    job = plan.job(f"results/finetune/digits/{name}-w4a4-seed0.safetensors")
    assert f" --method {name} " in job.shellcmd
    assert " --reconstruction results/reconstruction/digits/blocks-common-w4-seed0.safetensors " in job.shellcmd
    given, plain = (
        plan.settings(f"results/finetune/digits/{method}-w4a4-seed0.safetensors")["methods"]["quest"]
        for method in (name, "quest")
    )
    assert given == plain | {"global_loss": False}
    nearest = plan.job("results/finetune/digits/quest+nearest-rounding-w4a4-seed0.safetensors")
    assert "--reconstruction" not in nearest.shellcmd


def test_a_table_of_the_paper_runs_its_own_cells(project: Project) -> None:
    plan = Plan(project, targets=("results/paper/digits/components.md",))
    assert "table" not in plan.rules()
    assert {job.wildcards.method for job in plan.jobs if job.rule.name == "finetune"} == {
        *("q-diffusion", "quest", "quest+no-finetuning", "quest+tla-only", "quest+cma-only"),
    }
    command = plan.job("results/paper/digits/components.json").shellcmd
    assert command.startswith("quest paper components digits results/metrics/digits/fp-w32a32-seed0.json ")
    assert " results/metrics/digits/quest+tla-only-w4a8-seed0.json " in command


def test_a_run_makes_the_tables_that_it_names(project: Project) -> None:
    rules = Plan(project, {"tables": ["components", "levels"], "seeds": [0, 1]}).rules()
    assert (rules["paper"], rules["track_paper"]) == (2, 2)
    assert rules["finetune"] == 2 * (6 + 4 + 3)


def test_a_table_on_a_dataset_whose_weights_are_not_here(project: Project) -> None:
    (project.root / "data/models/digits/denoiser.safetensors").unlink()
    plan = Plan(project, {"datasets": ["digits-quick"]}, ("results/paper/digits-quick/components.md",))
    assert plan.rules() == {"paper": 1}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/paper/digits/component.md", "table: unknown 'component' (did you mean 'components'?)"),
        ("results/paper/digit/components.md", "dataset: unknown 'digit' (did you mean 'digits'?)"),
    ],
)
def test_an_unknown_table_or_dataset(project: Project, target: str, message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        Plan(project, targets=(target,))


def test_an_unknown_table_of_a_run(project: Project) -> None:
    with pytest.raises(WorkflowError, match=r"table: unknown 'component' \(did you mean 'components'\?\)"):
        Plan(project, {"tables": ["component"]})


def test_settings_are_what_the_command_line_reads(project: Project) -> None:
    whole = load_dataset("digits", project.root / "config")
    for job in Plan(project).jobs:
        if job.params.get("settings") is None:
            continue
        read = validate(DatasetSettings, json.loads(job.params.settings), "--settings")
        if job.rule.name in ("calibrate", "reconstruct", "finetune"):
            assert (read.sampler, read.calibration) == (whole.sampler, whole.calibration)
        if job.rule.name == "finetune":
            assert read.method(job.wildcards.method) == whole.method(job.wildcards.method)
        if job.rule.name == "sample":
            assert (read.sampler, read.evaluation.images, read.evaluation.shards) == (
                *(whole.sampler, whole.evaluation.images, whole.evaluation.shards),
            )
        if job.rule.name == "measure":
            assert read.evaluation == whole.evaluation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": ["w9a8"]}, "bits: 'w9a8' is not w<weight bits>a<activation bits> with bits from 2 to 8"),
        ({"datasets": ["digit"]}, "datasets: unknown 'digit' (did you mean 'digits'?)"),
        ({"methods": ["quset"]}, "methods: unknown 'quset' (did you mean 'quest'?)"),
        ({"methods": ["quest+tla-onyl"]}, "methods: unknown 'quest+tla-onyl' (did you mean 'quest+tla-only'?)"),
        ({"seed": [1]}, "seed: unknown 'seed' (did you mean 'seeds'?)"),
        ({"chains": 2}, "chains is 2, more than there are seeds, [0]"),
        ({"seeds": [-1]}, "seeds.0: found -1; greater than or equal to 0 is expected"),
    ],
)
def test_a_wrong_run_is_refused_before_any_job(project: Project, change: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        Plan(project, change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("sampler", "step"), 10, "config/datasets/digits.yaml: sampler.step: unknown 'step' (did you mean 'steps'?)"),
        (("sampler", "steps"), 30, "calibration.steps is 20, which does not divide sampler.steps = 30"),
        (
            ("quantizer",),
            {"softmax_bits": 1},
            "quantizer.softmax_bits: found 1; greater than or equal to 2 is expected",
        ),
    ],
)
def test_a_wrong_protocol_is_refused_before_any_job(
    project: Project, keys: tuple[str, ...], value: Any, message: str
) -> None:
    project.edit("config/datasets/digits.yaml", *keys, value=value)
    with pytest.raises(WorkflowError) as caught:
        Plan(project)
    assert message in str(caught.value)


def test_the_suite_of_the_paper_is_planned_without_any_weight(default_project: Project) -> None:
    whole = load(ROOT / "config" / "paper.yaml")
    rules = Plan(default_project, {"suite": "paper"}).rules()
    cells = len(list(whole.cells()))
    assert rules["import_model"] == rules["table"] == len(whole.datasets) == 5
    assert rules["finetune"] == 5 * (cells - 1)
    assert rules["measure"] == 5 * cells
    assert rules["sample"] == cells * sum(settings.evaluation.shards for settings in whole.datasets.values())
    assert rules["bring"] == 7  # Inception, a reference batch each, and prompts
    small = {"suite": "paper", "seeds": [40, 41], "datasets": ["imagenet"]}  # each seed a chain
    assert Plan(default_project, small).rules()["finetune"] == 2 * (cells - 1)


def test_an_imported_model_follows_its_source_in_the_configuration(default_project: Project) -> None:
    plan = Plan(default_project, {"suite": "paper"})
    job = plan.job("data/models/lsun-churches/denoiser.safetensors")
    assert list(job.input) == ["config/models/lsun-churches.yaml"]
    given = plan.settings("data/models/lsun-churches/denoiser.safetensors")
    assert (given["source"], given["source_sha256"]) == ("data/sources/lsun-churches/model.ckpt", None)
    read = validate(DatasetSettings, given, "--settings")
    assert read.architecture == Path("config/models/lsun-churches.yaml")
    assert not plan.job("data/models/cifar10/denoiser.safetensors").input


def test_a_study_that_takes_hours_is_made_where_its_file_is_asked_for(project: Project) -> None:
    file = "results/analysis/digits/convergence.csv"
    plan = Plan(project, targets=(file,))
    assert plan.rules()["analyse"] == plan.rules()["calibrate"] == 1
    assert "finetune" not in plan.rules()
    assert shlex.split(plan.job(file).shellcmd)[:4] == ["quest", "analyse", "convergence", "digits"]
    assert "iterations" in plan.settings(file)["reconstruction"]


def test_a_table_is_told_what_the_study_of_convergence_found(project: Project) -> None:
    """Where it was made by the settings as they are; it is never asked for, since it takes hours."""
    table, study = "results/tables/digits.json", project.root / "results/analysis/digits/convergence.csv"
    assert "--convergence" not in Plan(project, targets=(table,)).job(table).shellcmd
    study.parent.mkdir(parents=True)
    header = "unit,layers,weight_bits,iterations,nearest,learned,longer,change,converged\n"
    study.write_text(f"{header}conv_in,1,4,300,2,1,0.8,-0.2,False\nconv_out,1,4,300,2,1,0.99,-0.01,True\n")
    plan = Plan(project, targets=(table,))
    words = shlex.split(plan.job(table).shellcmd)
    assert json.loads(words[words.index("--convergence") + 1]) == {
        **{"grouping": "blocks", "policy": "common", "weight_bits": 4, "iterations": 300},
        **{"units": 2, "changed": 1, "unit": "conv_in", "change": -0.2},
    }
    assert not plan.rules().get("analyse")
    study.write_text(f"{header}conv_in,1,4,200,2,1,0.8,-0.2,False\n")
    assert "--convergence" not in Plan(project, targets=(table,)).job(table).shellcmd
    study.write_text("unit\n")
    with pytest.raises(WorkflowError, match=r"convergence\.csv: not as the study convergence writes it"):
        Plan(project, targets=(table,))


def test_seeds_given_on_the_command_line_are_numbers(project: Project) -> None:
    """As Snakemake reads them there."""
    assert Plan(project, parse_config(["seeds=[3,12]"])).rules()["calibrate"] == 2
    with pytest.raises(WorkflowError, match=r"seeds\.0: found 'one'"):
        Plan(project, parse_config(["seeds=[one]"]))


def test_an_unknown_suite(default_project: Project) -> None:
    known = "known are ablations, as-released, below-four, config, integers, longer-rounding, longer, methods, "
    known += "ours-parts, ours, paper, policies"
    with pytest.raises(WorkflowError, match=rf"suite: unknown 'papr' \(did you mean 'paper'\?\); {known}"):
        Plan(default_project, {"suite": "papr"})


def test_every_stage_that_reads_calibration_data_is_given_what_they_were_recorded_for(default_project: Project) -> None:
    plan = Plan(default_project, {"suite": "paper", "datasets": ["imagenet"], "methods": ["quest"], "bits": ["w4a4"]})
    given = [plan.settings(str(job.output[0])) for job in plan.jobs if "results/calibration" in str(job.input)]
    assert len(given) == 2  # reconstruct and finetune
    recorded = plan.settings("results/calibration/imagenet/seed40.safetensors")
    for settings in given:
        assert {key: settings[key] for key in ("sampler", "condition", "calibration")} == {
            key: recorded[key] for key in ("sampler", "condition", "calibration")
        }


def test_every_command_of_a_rule_is_one_that_the_command_line_takes(default_project: Project) -> None:
    """What the stub of the other tests would swallow: options that are not there, required ones left out."""
    few = {"bits": ["w4a4"], "seeds": [0]}
    for change in (
        {"methods": list(METHODS), "tables": ["components"], **few},
        {"suite": "shapes", "methods": ["quest", "tfmq-dm"], "tables": ["tfmq-dm"], **few},
        {"suite": "paper", "methods": ["quest"], "tables": [], **few},
    ):
        seen = {}
        for job in Plan(default_project, change, targets=("all", "analyses")).jobs:
            kind = job.rule.name, job.wildcards.get("dataset"), job.wildcards.get("method"), job.wildcards.get("study")
            if job.rule.name == "bring" or kind in seen:
                continue
            seen[kind] = job.rule.name
            command, *arguments = shlex.split(job.shellcmd.partition(" > ")[0].removeprefix("quest "))
            parsed = stages.command(command).make_context(command, arguments)
            if "settings" in parsed.params:
                settings = stages.protocol(job.wildcards.dataset, parsed.params["settings"])
                assert settings.model == load_dataset(job.wildcards.dataset, default_project.root / "config").model
        assert {"calibrate", "reconstruct", "finetune", "sample", "measure", "table", "analyse"} <= set(seen.values())


def test_a_denoiser_on_the_first_stage_of_another_dataset(project: Project) -> None:
    """Trained by a rule of its own, on a model that the other dataset's run makes, or that has to be brought."""
    shared = {name: f"data/models/digits/{name}.safetensors" for name in ("denoiser", "extractor")}
    mine = "data/models/mine/denoiser.safetensors"
    transformer = {"layers": 1, "heads": 1}
    protocol = yaml.safe_load((project.root / "config/datasets/digits.yaml").read_text()) | {
        "model": mine,
        "condition": {"classes": 10},
        "pretrain": {"transformer": transformer, "first_stage": shared["denoiser"], "steps": 1},
    }
    (project.root / "config/datasets/mine.yaml").write_text(yaml.safe_dump(protocol))
    plan = Plan(project, config={"datasets": ["mine"]})
    job = plan.job(mine)
    assert job.rule.name == "pretrain_denoiser"
    assert [*job.input] == [shared["denoiser"]]
    assert "pretrain" not in plan.rules()
    assert json.loads(job.params.settings)["pretrain"]["transformer"]["layers"] == 1
    for file in shared.values():
        (project.root / file).unlink()
    alone, both = (Plan(project, config={"datasets": names}) for names in (["mine"], ["digits", "mine"]))
    assert {alone.job(file).rule.name for file in shared.values()} == {"bring"}
    assert {both.job(file).rule.name for file in shared.values()} == {"pretrain"}
    assert "`dvc pull data/models` fetches it" in alone.job(shared["denoiser"]).params.missing
