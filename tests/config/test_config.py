"""Every kind of bad configuration gives one clear message: the file, the key, what was found and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from quest.config.dataset import DatasetSettings, load_dataset
from quest.config.methods import METHODS
from quest.config.methods.traq import TraqSettings
from quest.config.quantizer import QuantizerSettings
from quest.config.reading import unknown, validate
from quest.config.run import load
from quest.config.values import Bits, Cell, ConfigError
from quest.config.variants import load_variants, of_cell
from quest.methods import starts_from
from quest.quantization.network import Recipe

ROOT = Path(__file__).parents[2]
RUN = {"datasets": ["digits"], "methods": ["quest"], "bits": ["w4a4"], "seeds": [0]}
PROTOCOL = {
    "title": "digits",
    "model": "model.safetensors",
    "extractor": "extractor.safetensors",
    "image_size": 16,
    "image_channels": 1,
}


def write(folder: Path, run: dict[str, Any] | str, **datasets: dict[str, Any] | str) -> Path:
    """A config folder; returns the run's file."""
    (folder / "datasets").mkdir(parents=True)
    for name, content in datasets.items() or [("digits", PROTOCOL)]:
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / "datasets" / f"{name}.yaml").write_text(text)
    file = folder / "config.yaml"
    file.write_text(run if isinstance(run, str) else yaml.safe_dump(run))
    return file


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits", ["w9a4"], "bits: 'w9a4' is not w<weight bits>a<activation bits> with bits from 2 to 8, like w4a8"),
        ("bits", ["w16a16"], "bits: 'w16a16' is not w<weight bits>a<activation bits> with bits from 2 to 8"),
        ("bits", ["w4a1"], "bits: 'w4a1' is not"),
        ("bits", ["w04a8"], "bits: 'w04a8' is not"),
        ("bits", ["4/8"], "bits: '4/8' is not"),
        ("bits", ["w32a32"], "bits: w32a32 is full precision, which every table has already"),
        ("bits", [], "bits: found []; List should have at least 1 item"),
        ("methods", ["qest"], "methods: unknown 'qest' (did you mean 'quest'?); known are " + ", ".join(METHODS)),
        ("methods", "quest", "methods: found 'quest'; a valid list is expected"),
        ("seeds", [-1], "seeds.0: found -1; greater than or equal to 0 is expected"),
        ("seeds", ["one"], "seeds.0: found 'one'; a valid integer"),
        ("chains", 2, "chains is 2, more than there are seeds, [0]"),
        ("chains", 0, "chains: found 0; greater than 0 is expected"),
        ("seeds", [1, 1], "seeds: [1, 1] names a value twice"),
        ("methods", ["quest", "quest"], "methods: ['quest', 'quest'] names a value twice"),
        ("datasets", ["digits", "digits"], "datasets: ['digits', 'digits'] names a value twice"),
        ("seed", [0], "seed: unknown 'seed' (did you mean 'seeds'?); known are datasets, methods, bits, seeds"),
    ],
)
def test_a_bad_axis_is_named_with_its_file(tmp_path: Path, key: str, value: Any, message: str):
    file = write(tmp_path, RUN | {key: value})
    with pytest.raises(ConfigError, match=re.escape(f"{file}: {message}")):
        load(file)


def test_seeds_without_a_chain_of_their_own_take_turns(tmp_path: Path):
    run = load(write(tmp_path, RUN | {"seeds": [5, 6, 7, 8], "chains": 2})).run
    assert run.chain_seeds == [5, 6]
    assert [run.chain_seed(seed) for seed in run.seeds] == [5, 6, 5, 6]
    assert run.chain_seed(9) == 9, "a seed that is not of the run"
    whole = run.model_copy(update={"chains": None})
    assert [whole.chain_seed(seed) for seed in run.seeds] == whole.chain_seeds == run.seeds


def test_an_unknown_dataset_is_named_with_the_known_ones(tmp_path: Path):
    file = write(tmp_path, RUN | {"datasets": ["digit"]}, digits=PROTOCOL, shapes=PROTOCOL)
    message = f"datasets: unknown 'digit' (did you mean 'digits'?); known are digits, shapes (the files of {tmp_path}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(file)


def test_a_missing_axis_is_named(tmp_path: Path):
    file = write(tmp_path, {key: value for key, value in RUN.items() if key != "bits"})
    with pytest.raises(ConfigError, match=re.escape(f"{file}: bits: missing; it has no default")):
        load(file)


def test_a_missing_file_says_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: No such file or directory; run from the project's folder"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["datasets: [digits", "a: b: c", "\tx: 1"])
def test_a_yaml_syntax_error_names_file_and_line(tmp_path: Path, text: str):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}: not valid YAML: (.|\n)*line 1"):
        load(file)


def test_a_binary_file_is_an_error_of_configuration(tmp_path: Path):
    file = write(tmp_path, RUN)
    file.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(file)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- list"])
def test_a_file_that_is_no_mapping_is_an_error_of_configuration(tmp_path: Path, text: str):
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}: found .*; a valid mapping of keys is expected"):
        load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampler": {"step": 4}},
            "sampler.step: unknown 'step' (did you mean 'steps'?); known are kind, steps, eta, spacing",
        ),
        ({"samplr": {}}, "samplr: unknown 'samplr' (did you mean 'sampler'?)"),
        ({"methods": {"qest": {}}}, "methods.qest: unknown 'qest' (did you mean 'quest'?)"),
        ({"methods": {"quest": {"tla_epoch": 1}}}, "methods.quest.tla_epoch: unknown 'tla_epoch' (did you mean"),
        ({"pretrain": {"unet": {"channel": [8]}, "steps": 1}}, "pretrain.unet.channel: unknown 'channel'"),
        (
            {"pretrain": {"steps": 1}},
            "pretrain: unet and transformer: found neither; a model has one network, so set one of them",
        ),
        (
            {
                "pretrain": {
                    "transformer": {"layers": 1, "heads": 1},
                    "autoencoder": {"kind": "vq", "channels": [8], "latent_channels": 3},
                    "first_stage": "model.safetensors",
                    "steps": 1,
                }
            },
            "pretrain: autoencoder and first_stage are both set",
        ),
        ({"sampler": {"steps": "many"}}, "sampler.steps: found 'many'; a valid integer"),
        ({"sampler": {"steps": 2.5}}, "sampler.steps: found 2.5; a valid integer"),
        ({"sampler": {"eta": -0.1}}, "sampler.eta: found -0.1; greater than or equal to 0 is expected"),
        ({"sampler": {"eta": float("nan")}}, "sampler.eta: found nan; a finite number is expected"),
        ({"reconstruction": {"lr": float("inf")}}, "reconstruction.lr: found inf; a finite number is expected"),
        ({"reconstruction": {"warmup": 1}}, "reconstruction.warmup: found 1; less than 1 is expected"),
        ({"evaluation": {"images": 1}}, "evaluation.images: found 1; greater than or equal to 2 is expected"),
        ({"real_images": "cifar"}, "real_images: found 'cifar'; 'digits' or 'shapes' is expected"),
        ({"quantizer": {"softmax_bits": 32}}, "quantizer.softmax_bits: found 32; less than or equal to 16"),
        ({"quantizer": {"weight_search": "l2"}}, "quantizer.weight_search: found 'l2'; 'max' or 'mse' is expected"),
        (
            {"quantizer": {"activation_granularity": {"5": "per_token"}}},
            "quantizer.activation_granularity.5.[key]: found '5'; '4' or '8' is expected",
        ),
        ({"sampler": 20}, "sampler: found 20; a valid mapping of keys"),
        (
            {"sampler": {"steps": 20}, "calibration": {"steps": 3}},
            "calibration.steps is 3, which does not divide sampler.steps = 20",
        ),
        (
            {"methods": {"quest": {"sets": 3}}},
            "methods.quest.sets is 3, which does not divide sampler.steps = 20",
        ),
        # The defaults have to fit as well.
        ({"sampler": {"steps": 7}}, "calibration.steps is 20, which does not divide sampler.steps = 7"),
        (
            {"sampler": {"steps": 7}, "calibration": {"steps": 7}},
            "methods.quest.sets is 20, which does not divide sampler.steps = 7",
        ),
        (
            {"evaluation": {"images": 10, "shards": 11}},
            "evaluation.shards is 11, more than evaluation.images = 10",
        ),
        ({"evaluation": {"backend": "int"}}, "evaluation.backend: found 'int'; 'fake' or 'integer' is expected"),
        (
            {"evaluation": {"backend": "integer"}},
            "evaluation.backend is integer, but quantizer.activation_granularity.4 of quest w4a4 is per_channel, whose "
            "scales do not factor out of a sum of integers; expected per_tensor or offsets or multiples, or "
            "evaluation.backend fake",
        ),
        (
            {
                "evaluation": {"backend": "integer"},
                "quantizer": {"activation_granularity": {"4": "per_tensor"}, "weight_group": 64},
            },
            "evaluation.backend is integer, but quantizer.weight_group of quest w4a4 is 64",
        ),
    ],
)
def test_a_bad_protocol_is_named_with_its_file(tmp_path: Path, change: dict[str, Any], message: str):
    file = write(tmp_path, RUN, digits=PROTOCOL | change)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/datasets/digits.yaml: {message}")):
        load(file)


def test_a_method_with_grids_of_its_own_is_asked_for_those(tmp_path: Path):
    run = RUN | {"methods": ["traq"], "bits": ["w4a4"]}
    drawn_by_integers = PROTOCOL | {"evaluation": {"backend": "integer"}}
    assert load(write(tmp_path, run, digits=drawn_by_integers)).datasets["digits"].evaluation.backend == "integer"
    own = {"methods": {**PROTOCOL.get("methods", {}), "traq": {"granularity": {"4": "per_channel"}}}}
    with pytest.raises(ConfigError, match=r"methods\.traq\.granularity\.4 of traq w4a4 is per_channel"):
        load(write(tmp_path / "own", run, digits=drawn_by_integers | own))


def test_every_fault_of_a_file_is_in_one_message(tmp_path: Path):
    file = write(tmp_path, RUN, digits={"title": "digits", "sampler": {"steps": 0, "speed": 1}})
    with pytest.raises(ConfigError) as error:
        load(file)
    lines = str(error.value).splitlines()
    assert all(line.startswith(f"{tmp_path}/datasets/digits.yaml: ") for line in lines)
    for key in ("model: missing", "image_size: missing", "sampler.steps: found 0", "sampler.speed: unknown"):
        assert sum(key in line for line in lines) == 1


@pytest.mark.parametrize("granularity", ["per_tensor", "offsets", "multiples"])
def test_a_run_through_integers_may_have_scales_that_kernels_take(tmp_path: Path, granularity: str):
    change = {"evaluation": {"backend": "integer"}, "quantizer": {"activation_granularity": {"4": granularity}}}
    assert list(load(write(tmp_path, RUN, digits=PROTOCOL | change)).cells())


def test_a_good_run_gives_its_cells_full_precision_first(tmp_path: Path):
    run = {"datasets": ["digits"], "methods": ["nearest", "quest"], "bits": ["w8a8", "w4a4"], "seeds": [0, 1]}
    config = load(write(tmp_path, run))
    assert list(config.cells()) == [
        Cell("fp", "w32a32"),
        Cell("nearest", "w8a8"),
        Cell("quest", "w8a8"),
        Cell("nearest", "w4a4"),
        Cell("quest", "w4a4"),
    ]
    assert config.run.seeds == [0, 1]
    assert config.datasets["digits"].sampler.steps == 20


def test_a_run_can_be_given_as_content(tmp_path: Path):
    write(tmp_path, RUN)
    assert load(RUN, tmp_path) == load(tmp_path / "config.yaml")


def test_settings_survive_a_round_trip_through_json():
    settings = load_dataset("digits", ROOT / "config")
    assert validate(DatasetSettings, settings.model_dump(mode="json"), "again") == settings


RUNS = [file for file in sorted((ROOT / "config").glob("*.yaml")) if "methods" in yaml.safe_load(file.read_text())]


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_the_runs_in_the_repository_are_valid(file: Path):
    assert len(list(load(file).cells())) > 1


def test_settings_cannot_be_changed():
    settings = load_dataset("digits", ROOT / "config")
    with pytest.raises(ValueError, match="frozen"):
        settings.image_size = 32


def test_granularity_by_activation_bits_keeps_the_defaults_of_other_widths():
    given = QuantizerSettings.model_validate({"activation_granularity": {4: "per_token"}})
    recipe = Recipe(Bits(4, 4), given, 1, 20)
    assert [recipe.activation_granularity(bits) for bits in (2, 4, 5, 8)] == [
        "per_token",
        "per_token",
        "per_tensor",
        "per_tensor",
    ]


def test_what_depends_on_activation_bits_may_be_given_in_part() -> None:
    given = TraqSettings.model_validate({"weight_lr": {8: 0.25}, "granularity": {"4": "offsets"}})
    assert given.weight_lr == {"4": TraqSettings().weight_lr["4"], "8": 0.25}
    assert given.granularity == {"4": "offsets", "8": "per_tensor"}
    assert TraqSettings.model_validate({"weight_lr": 0.5}).weight_lr == {"4": 0.5, "8": 0.5}, "a number is for any bits"


def test_multiples_are_for_few_bits():
    assert QuantizerSettings.model_validate({"activation_granularity": {4: "multiples"}})
    with pytest.raises(ValueError, match="8: multiples: times a whole number, codes of 8 bits fit no byte"):
        QuantizerSettings.model_validate({"activation_granularity": {8: "multiples"}})


@pytest.mark.parametrize("text", ["w8a8", "w4a8", "w4a4", "w2a8", "w32a32"])
def test_bits_are_written_as_they_are_read(text: str):
    assert str(Bits.parse(text)) == text


VARIANTS = {
    "quest+no-global-loss": {"methods": {"quest": {"global_loss": False}}},
    "nearest+per-token": {"quantizer": {"activation_granularity": {4: "per_token"}}},
}


def with_variants(folder: Path, variants: dict[str, Any], methods: list[str]) -> Path:
    file = write(folder, RUN | {"methods": methods})
    (folder / "variants.yaml").write_text(yaml.safe_dump(variants))
    return file


def test_a_variant_overrides_settings_of_its_cells_alone(tmp_path: Path):
    config = load(with_variants(tmp_path, VARIANTS, ["quest", *VARIANTS]))
    assert Cell("quest+no-global-loss", "w4a4") in config.cells()
    dataset = config.datasets["digits"]
    assert config.settings("digits") == config.settings("digits", "quest") == dataset

    changed = config.settings("digits", "quest+no-global-loss")
    assert changed.method("quest+no-global-loss") == dataset.methods.quest.model_copy(update={"global_loss": False})
    assert changed.quantizer == dataset.quantizer

    changed = config.settings("digits", "nearest+per-token")
    assert changed.quantizer.activation_granularity == {"4": "per_token", "8": "per_tensor"}
    assert changed.methods == dataset.methods


def test_overrides_keep_what_the_protocol_says_beside_them():
    dataset = load_dataset("digits", ROOT / "config")
    for name, variant in load_variants(ROOT / "config").items():
        changed = of_cell(dataset, name, {name: variant})
        again = changed.model_dump(include={"sampler", "calibration", "reconstruction", "evaluation"})
        assert again == dataset.model_dump(include={"sampler", "calibration", "reconstruction", "evaluation"})
        method, before = changed.method(name).model_dump(), dataset.method(name).model_dump()
        overrides = next(iter(variant.methods.values()), {})
        assert {key for key in method if method[key] != before[key]} <= set(overrides), name


def test_a_reconstruction_is_needed_where_a_method_starts_from_learned_rounding():
    dataset, variants = load_dataset("digits", ROOT / "config"), load_variants(ROOT / "config")
    expected = {
        "quest": ("blocks", "common"),
        "quest+everything": ("blocks", "everything"),
        "quest+paper": ("blocks", "quest-paper"),
        "quest+nearest-rounding": None,
        "quest+tla-only": ("blocks", "common"),
        "quest+time-full-precision": ("blocks", "time_full_precision"),
        "efficientdm": None,
        "efficientdm+learned-rounding": ("blocks", "common"),
        "nearest+per-token": None,
        "tfmq-dm": ("temporal", "common"),
        "tfmq-dm+paper": ("temporal", "tfmq-dm-paper"),
    }
    found = {name: starts_from(name, of_cell(dataset, name, variants).method(name)) for name in expected}
    assert found == expected


@pytest.mark.parametrize(
    ("variants", "methods", "message"),
    [
        (VARIANTS, ["quest+no-globl-loss"], r"config.yaml: methods: unknown 'quest\+no-globl-loss' \(did you mean "),
        ({"no-loss": {}}, ["quest"], "variants.yaml: no-loss: a variant is named <method>\\+<what is changed>, like"),
        ({"quset+x": {}}, ["quest"], r"variants.yaml: quset\+x: unknown 'quset' \(did you mean 'quest'\?\)"),
        (
            {"quest+x": {"methods": {"nearest": {"sets": 1}}}},
            ["quest"],
            r"quest\+x: methods.nearest: a variant of quest",
        ),
        (
            {"quest+x": {"quantizer": {"weight_search": "max"}}},
            ["quest"],
            "weight_search: weights are reconstructed once",
        ),
        ({"quest+x": {"method": {}}}, ["quest"], r"quest\+x: method: unknown 'method' \(did you mean 'methods'\?\)"),
        (
            {"quest+x": {"methods": {"quest": {"global_los": False}}}},
            ["quest+x"],
            r"variants.yaml: quest\+x: methods.quest.global_los: unknown 'global_los' \(did you mean 'global_loss'\?\)",
        ),
        (
            {"quest+x": {"quantizer": {"legacy_symmetric_levels": True}}},
            ["quest+x"],
            "quantizer: legacy_symmetric_levels is of symmetric grids; set activation_symmetric too",
        ),
        (
            {"efficientdm+x": {"methods": {"efficientdm": {"rounding": "learned"}}}},
            ["efficientdm+x"],
            "rounding is learned on the ranges of the quantizer; set weight_search to quantizer too",
        ),
        (
            {"quest+x": {"methods": {"quest": {"sets": 7}}}},
            ["quest+x"],
            "sets is 7, which does not divide sampler.steps",
        ),
    ],
)
def test_a_wrong_variant(tmp_path: Path, variants: dict[str, Any], methods: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(with_variants(tmp_path, variants, methods))


def test_a_run_of_mixed_policies_is_refused_before_it_starts(tmp_path: Path):
    protocol = PROTOCOL | {"methods": {"ptqd": {"policy": "everything"}, "quest": {"policy": "everything"}}}
    file = write(tmp_path, RUN | {"methods": ["quest", "ptqd"]}, digits=protocol)
    load(file)
    file.write_text(yaml.safe_dump(RUN | {"methods": ["quest", "ptqd", "nearest"]}))
    message = "digits.yaml: the policy of nearest is common, but that of quest everything; expected one policy"
    with pytest.raises(ConfigError, match=message):
        load(file)


def test_policies_stand_side_by_side_where_the_rows_say_them(tmp_path: Path):
    variants = {
        "quest+everything": {"methods": {"quest": {"policy": "everything"}}},
        "nearest+paper": {"methods": {"nearest": {"policy": "paper"}}},
        "quest+silent": {"methods": {"quest": {"policy": "everything"}}},
    }
    file = with_variants(tmp_path, variants, ["quest", "quest+everything", "nearest", "nearest+paper"])
    load(file)
    file.write_text(yaml.safe_dump(RUN | {"methods": ["quest", "quest+silent"]}))
    with pytest.raises(ConfigError, match=r"the policy of quest\+silent is everything, but that of quest common"):
        load(file)


def test_no_suggestion_where_nothing_is_near():
    assert unknown("zzz", ["quest", "nearest"]) == "unknown 'zzz'; known are quest, nearest"
