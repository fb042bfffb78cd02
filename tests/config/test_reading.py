"""Files of configuration as they should not be: every fault is one sentence that names the file and what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from quest.cli import main
from quest.config.dataset import DatasetSettings
from quest.config.learning import ReconstructionSettings
from quest.config.reading import read, validate
from quest.config.run import load, require_models, run_file
from quest.config.sampling import SamplerSettings
from quest.config.values import ConfigError
from quest.report.published import Published

ROOT = Path(__file__).parents[2]
RUN = {"datasets": ["digits"], "methods": ["quest"], "bits": ["w4a4"], "seeds": [0]}
PROTOCOL = {
    "title": "digits",
    "model": "model.safetensors",
    "extractor": "extractor.safetensors",
    "image_size": 16,
    "image_channels": 1,
}


def project(folder: Path, name: str = "digits", **changes: Any) -> Path:
    """A folder of configuration with one dataset; returns the run's file."""
    (folder / "datasets").mkdir(exist_ok=True)
    (folder / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(PROTOCOL | changes))
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(RUN))
    return file


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load(file)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seeds: [0]\nbits: [w4a4]\nseeds: [1]\n", "line 3: seeds is given twice; leave one of the two out"),
        ("a:\n  b: {c: 1, d: 2, c: 3}\n", "line 2: c is given twice; leave one of the two out"),
        ("a: {4: x, '4': y}\n", "line 1: 4 is given twice; leave one of the two out"),
        ("a: [1\n", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("a: !!python/name:os.system\n", "line 1: could not determine a constructor for the tag"),
        ("a: 2024-02-31\n", "a value in it cannot be read"),
        ("[" * 3000, "a value in it cannot be read"),
    ],
)
def test_what_is_no_proper_yaml_is_one_line(tmp_path: Path, text: str, fault: str):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(file)
    assert str(error.value).startswith(f"{file}: not valid YAML: {fault}")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_bytes("title: Gemälde".encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        read(file)
    assert str(error.value) == f"{file}: not valid YAML: byte 10 is no UTF-8; save it as UTF-8 text"


def test_a_merged_key_may_be_given_again_and_a_byte_order_mark_is_none_of_the_text(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_bytes("\ufeffa: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n".encode())
    assert read(file) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_files_are_utf8_whatever_the_locale(tmp_path: Path):
    file = project(tmp_path, title="Gemälde 图")
    (tmp_path / "datasets" / "digits.yaml").write_text(
        yaml.safe_dump(PROTOCOL | {"title": "Gemälde 图"}, allow_unicode=True), encoding="utf-8"
    )
    script = f"""
import pathlib
from quest.config.run import load
print(ascii(load(pathlib.Path({str(file)!r})).datasets["digits"].title))
"""
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run([sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ascii("Gemälde 图")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sampler": {"steps": True}}, "sampler.steps: found true; a valid integer is expected"),
        ({"sampler": {"steps": "20"}}, "sampler.steps: found '20'; a valid integer is expected"),
        ({"sampler": {"steps": 20.0}}, "sampler.steps: found 20.0; a valid integer is expected"),
        ({"sampler": {"steps": None}}, "sampler.steps: found nothing; a valid integer is expected"),
        ({"sampler": {"eta": "0"}}, "sampler.eta: found '0'; a valid number is expected"),
        ({"sampler": {"eta": False}}, "sampler.eta: found false; a valid number is expected"),
        ({"sampler": {"eta": 1.5}}, "sampler.eta: found 1.5; less than or equal to 1 is expected"),
        ({"sampler": {"timesteps": 5}}, "sampler.timesteps: found 5; a valid list is expected"),
        ({"sampler": []}, "sampler: found []; a valid mapping of keys is expected"),
        ({"title": 5}, "title: found 5; a valid string is expected"),
        ({"quantizer": {"split_shortcuts": 1}}, "quantizer.split_shortcuts: found 1; a valid boolean is expected"),
        ({"quantizer": {"split_shortcuts": "yes"}}, "split_shortcuts: found 'yes'; a valid boolean is expected"),
        ({"image_size": 10**9}, "image_size: found 1000000000; less than or equal to 8192 is expected"),
        ({"image_channels": 1000}, "image_channels: found 1000; less than or equal to 16 is expected"),
        ({"evaluation": {"images": 10**12}}, "evaluation.images: found 1000000000000; less than or equal to 10000000"),
        ({"analysis": {"images": 10**12}}, "analysis.images: found 1000000000000; less than or equal to 10000000"),
        ({"sampler": {"steps": 10**5}}, "sampler.steps: found 100000; less than or equal to 10000 is expected"),
        ({"model": 3}, "model: found 3; "),
    ],
)
def test_nothing_is_taken_for_what_it_is_not(tmp_path: Path, change: dict[str, Any], fault: str):
    file = project(tmp_path, **change)
    message = refusal(file)
    assert message.startswith(f"{tmp_path}/datasets/digits.yaml: ")
    assert fault in message
    assert not re.search("NoneType|dict|class|<", message)


def test_what_yaml_and_json_write_for_numbers_lists_and_paths_is_taken(tmp_path: Path):
    file = project(tmp_path)
    (tmp_path / "datasets" / "digits.yaml").write_text(
        yaml.safe_dump(PROTOCOL)
        + "sampler: {steps: 2, eta: 0, timesteps: [900, 100]}\n"
        + "calibration: {steps: 2}\n"
        + "methods: {"
        + ", ".join(f"{name}: {{sets: 2}}" for name in ("nearest", "q_diffusion", "ptqd", "quest", "efficientdm"))
        + ", tfmq_dm: {sets: 2}, traq: {sets: 2}}\n"
        + "reconstruction: {lr: 1e-3, beta: [20, 2]}\n"
        + "quantizer: {activation_granularity: {4: per_token}}\n"
    )
    settings = load(file).datasets["digits"]
    assert (settings.sampler.eta, settings.sampler.timesteps) == (0.0, (900, 100))
    assert isinstance(settings.sampler.eta, float)
    assert settings.model == Path("model.safetensors")
    assert (settings.reconstruction.lr, settings.reconstruction.beta) == (1e-3, (20.0, 2.0))
    assert settings.quantizer.activation_granularity == {"4": "per_token", "8": "per_tensor"}
    passed = json.loads(json.dumps(settings.model_dump(mode="json")))
    assert validate(DatasetSettings, passed, "--settings") == settings


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001", "1.0e-3"])
def test_a_number_may_be_written_with_an_exponent(tmp_path: Path, text: str):
    file = tmp_path / "section.yaml"
    file.write_text(f"lr: {text}\n")
    assert validate(ReconstructionSettings, read(file), "tests").lr == 1e-3


def test_a_text_with_an_exponent_in_it_stays_a_text(tmp_path: Path):
    file = tmp_path / "section.yaml"
    file.write_text("[1e3a, w4a8, e5, 12, '1e3']\n")
    assert read(file) == ["1e3a", "w4a8", "e5", 12, "1e3"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("&a {sampler: *a}", "it contains itself, or has a key that is no text"),
        ("2024-01-01: 1", "it contains itself, or has a key that is no text"),
        ('kind: "\\ud800"', "a text in it is no Unicode"),
    ],
)
def test_content_that_no_json_could_carry_is_refused(tmp_path: Path, text: str, fault: str):
    file = tmp_path / "section.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^section: {fault}"):
        validate(SamplerSettings, read(file), "section")


@pytest.mark.parametrize("name", ["x$(touch pwned)", "two words", "digits.methods", "Digits", "-x", "a;b", "ü"])
def test_a_dataset_or_suite_is_named_by_letters_digits_and_dashes(tmp_path: Path, name: str):
    file = project(tmp_path, name)
    project(tmp_path)
    assert refusal(file) == (
        f"{str(tmp_path / 'datasets' / name) + '.yaml'!r}: a dataset is named by small letters, digits and dashes; "
        "rename the file"
    )
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RUN))
    with pytest.raises(ConfigError, match="a suite is named by small letters, digits and dashes; rename the file"):
        run_file("paper", tmp_path)


def test_hidden_files_are_none_of_ours(tmp_path: Path):
    file = project(tmp_path)
    (tmp_path / "datasets" / "._digits.yaml").touch()
    (tmp_path / ".#config.yaml").touch()
    assert list(load(file).datasets) == ["digits"]
    assert run_file("config", tmp_path) == file


def test_an_error_says_which_file_or_option_it_is_of(tmp_path: Path):
    project(tmp_path)
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(RUN | {"bits": ["w9a4"]}))
    assert refusal(tmp_path / "paper.yaml").startswith(f"{tmp_path}/paper.yaml: bits: 'w9a4'")
    for content, origin in (
        (RUN | {"suite": "paper", "bits": ["w9a4"]}, "paper.yaml: bits: 'w9a4'"),
        (RUN | {"seeds": ["x"]}, "config.yaml with --config seeds: seeds.0: found 'x'"),
        (RUN | {"datasets": ["digit"]}, "config.yaml with --config datasets: datasets: unknown 'digit'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/{origin}")):
            load(content, tmp_path)
    with pytest.raises(ConfigError, match=r"--config: suite: unknown 'papr' \(did you mean 'paper'\?\)"):
        run_file("papr", tmp_path)
    with pytest.raises(ConfigError, match=r"--config: suite: unknown \"\['paper'\]\""):
        load(RUN | {"suite": ["paper"]}, tmp_path)


def test_a_model_that_is_not_there_and_that_nothing_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = project(tmp_path)
    fault = "datasets/digits.yaml: model: model.safetensors is not there, and neither source nor pretrain says how to "
    with pytest.raises(ConfigError, match=re.escape(fault)):
        require_models(load(file), tmp_path)
    checked = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
    assert checked.exit_code == 1
    assert fault in checked.output
    (tmp_path / "model.safetensors").touch()
    require_models(load(file), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    require_models(load(project(tmp_path, source="a/hub-id")), tmp_path)
    monkeypatch.chdir(ROOT)
    require_models(load(ROOT / "config" / "config.yaml"))


@pytest.mark.parametrize("text", ["- a\n", "a\n", "3: {}\n"])
def test_variants_that_are_none(tmp_path: Path, text: str):
    file = project(tmp_path)
    (tmp_path / "variants.yaml").write_text(text)
    assert refusal(file).startswith(f"{tmp_path}/variants.yaml: ")


def test_an_unknown_key_inside_a_table_is_named(tmp_path: Path) -> None:
    """Below names and positions, which are no fields."""
    content = yaml.safe_load((ROOT / "config/published.yaml").read_text())
    name, table = next(iter(content["tables"].items()))
    table["rows"][1]["metod"] = "quest"
    said = rf"tables\.{name}\.rows\.1\.metod: unknown 'metod' \(did you mean 'method'\?\); known are"
    with pytest.raises(ConfigError, match=said):
        validate(Published, content, "published.yaml")
    table["titel"] = table["rows"][1].pop("metod")
    with pytest.raises(ConfigError, match=rf"tables\.{name}\.titel: unknown 'titel' \(did you mean 'title'\?\)"):
        validate(Published, content, "published.yaml")
