"""After a whole run: one change reruns exactly what it touches."""

from __future__ import annotations

from typing import Any

import pytest
from project import Plan, Project

DIGITS = "config/datasets/digits.yaml"
ENDS = {"table": 1, "write_table": 1, "figures": 1, "track": 1}
ALL_QUANTIZED = {"finetune": 6, "sample": 12, "preview": 6, "measure": 6, "score": 6, **ENDS}
ALL_MEASURED = {"measure": 7, "score": 7, **ENDS}
QUEST = {"finetune": 3, "sample": 6, "preview": 3, "measure": 3, "score": 3, **ENDS}
# Full precision is compared with everywhere: new images of it change the metrics of every cell.
EVERYTHING = {"calibrate": 1, "reconstruct": 2, "finetune": 6, "sample": 14, "preview": 7, **ALL_MEASURED}


def test_nothing_changed(finished: Project) -> None:
    assert Plan(finished).rules() == {}


@pytest.mark.parametrize(
    ("keys", "value", "rules"),
    [
        (("title",), "another name", {}),
        (("methods", "quest", "cma_epochs"), 5, QUEST),
        (("methods", "quest", "tla_weight_lr"), 1e-4, QUEST),
        (("reconstruction", "iterations"), 301, {"reconstruct": 2, **QUEST}),
        (("quantizer",), {"softmax_bits": 7}, ALL_QUANTIZED),
        (("quantizer",), {"weight_search": "max"}, {"reconstruct": 2, **ALL_QUANTIZED}),
        (("methods", "quest", "sets"), 10, QUEST),
        (("calibration", "samples_per_step"), 65, {"calibrate": 1, "reconstruct": 2, **ALL_QUANTIZED}),
        (("calibration", "steps"), 10, {"calibrate": 1, "reconstruct": 2, **ALL_QUANTIZED}),
        (("sampler", "steps"), 40, EVERYTHING),
        (("evaluation", "images"), 1001, {"sample": 14, "preview": 7, **ALL_MEASURED}),
        (("evaluation", "neighbours"), 4, ALL_MEASURED),
        (("evaluation", "batch_size"), 50, {"sample": 14, "preview": 7, **ALL_MEASURED}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_a_changed_setting(finished: Project, keys: tuple[str, ...], value: Any, rules: dict[str, int]) -> None:
    finished.edit(DIGITS, *keys, value=value)
    assert Plan(finished).rules() == rules


def test_a_setting_of_one_method_leaves_the_others_alone(finished: Project) -> None:
    finished.edit(DIGITS, "methods", "quest", "cma_epochs", value=5)
    assert {job.wildcards.get("method", "quest") for job in Plan(finished).jobs} == {"quest"}


def test_a_changed_variant_runs_its_own_cells(finished: Project) -> None:
    methods = {"methods": ["nearest", "quest", "quest+half-passes", "nearest+per-token"]}
    ran = ALL_QUANTIZED
    plan = Plan(finished, methods)
    assert plan.rules() == ran
    assert {job.wildcards.get("method", "nearest+per-token") for job in plan.jobs} == set(methods["methods"][2:])
    file = "results/finetune/digits/quest+half-passes-w4a4-seed0.safetensors"
    before = Plan(finished, methods).settings(file)
    finished.edit("config/variants.yaml", "quest+half-passes", "methods", "quest", "passes", value=0.25)
    after = Plan(finished, methods).settings(file)
    assert before["methods"]["quest"]["passes"] == 0.5
    assert after == before | {"methods": {"quest": before["methods"]["quest"] | {"passes": 0.25}}}


def test_writing_a_default_out_changes_nothing(finished: Project) -> None:
    finished.edit(DIGITS, "quantizer", value={"softmax_bits": 8})
    assert Plan(finished).rules() == {}


def test_a_new_bit_width_runs_its_own_cells(finished: Project) -> None:
    finished.edit("config/config.yaml", "bits", value=["w8a8", "w4a8", "w4a4", "w3a8"])
    plan = Plan(finished)
    assert plan.rules() == {
        "reconstruct": 1,
        "finetune": 2,
        "sample": 4,
        "preview": 2,
        "measure": 2,
        "score": 2,
        **ENDS,
    }
    assert {job.wildcards.get("bits", "w3a8") for job in plan.jobs} == {"w3a8"}


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("report/tables", ENDS),
        ("stages/score", {"score": 7}),
        ("stages/preview", {"preview": 7, "figures": 1, "track": 1}),
        ("deploy/backends/fake", {"sample": 14, "preview": 7, **ALL_MEASURED}),
        ("deploy/backends/integer", {}),  # what the default backend does not go through
        ("deploy/kernels/__init__", {}),
        ("methods/quest", QUEST),
        ("methods/nearest", QUEST),  # as many cells
        ("config/methods/quest", QUEST),
        ("metrics/measure", ALL_MEASURED),
        ("config/reference", {}),
        ("cli/__init__", {}),
        ("cli/tools", {}),
        ("embedded/training/denoiser", {}),
    ],
)
def test_changed_code(finished: Project, module: str, rules: dict[str, int]) -> None:
    file = finished.root / "quest" / f"{module}.py"
    source = file.read_text()
    file.write_text(f"# a comment\n{source}\n\n# another\n")
    assert Plan(finished).rules() == {}
    file.write_text(f"{source}\n_SOMETHING_NEW = 1\n")
    assert Plan(finished).rules() == rules
    file.write_text(source)
    assert Plan(finished).rules() == {}


def test_another_backend_draws_all_anew_and_depends_on_its_kernels(finished: Project) -> None:
    finished.edit(DIGITS, "quantizer", "activation_granularity", value={"4": "per_tensor"})
    before = Plan(finished)
    finished.edit(DIGITS, "evaluation", "backend", value="integer")
    plan = Plan(finished)
    assert plan.rules() == before.rules() | {"sample": 14, "preview": 7, **ALL_MEASURED}
    kernel = finished.root / "quest/deploy/kernels/cpu.py"
    kernel.write_text(f"{kernel.read_text()}\n_SOMETHING_NEW = 1\n")
    (first, *_), (second, *_) = (
        [job for job in each.jobs if job.rule.name == "sample"] for each in (plan, Plan(finished))
    )
    assert first.params.code != second.params.code


def test_a_new_model_reruns_all_that_it_drew(finished: Project) -> None:
    (finished.root / "data/models/digits/denoiser.safetensors").write_text("another model")
    assert Plan(finished).rules() == EVERYTHING


def test_touching_files_reruns_nothing(finished: Project) -> None:
    for file in [*(finished.root / "data").rglob("*.safetensors"), *(finished.root / "results/finetune").rglob("*.*")]:
        file.touch()
    assert Plan(finished).rules() == {}


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("results/tables/digits.md", {"write_table": 1}),
        ("results/tables/digits.json", ENDS),
        ("results/figures/digits/samples.png", {"figures": 1, "track": 1}),
        ("results/scores/digits/quest-w4a4-seed0.json", {"score": 1}),
        ("results/metrics/digits/quest-w4a4-seed0.json", {"measure": 1, "score": 1, **ENDS}),
        ("results/previews/digits/quest-w4a4-seed0.safetensors", {"preview": 1, "figures": 1, "track": 1}),
        ("results/tracking/digits.json", {"track": 1}),
    ],
)
def test_a_deleted_result_is_made_again_and_nothing_else(finished: Project, file: str, rules: dict[str, int]) -> None:
    (finished.root / file).unlink()
    assert Plan(finished).rules() == rules


def test_a_deleted_table_draws_no_image_where_images_are_not_shared(finished: Project) -> None:
    for file in (finished.root / "results/samples").rglob("*.safetensors"):
        file.unlink()
    assert Plan(finished).rules() == {}
    (finished.root / "results/tables/digits.json").unlink()
    assert Plan(finished).rules() == ENDS
