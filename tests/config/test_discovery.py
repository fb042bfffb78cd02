"""A method's settings are found by their file, and its title beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quest
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS, MethodsSettings, base_method, python_name, title

PACKAGE = Path(quest.__file__).parent


def test_methods_are_the_files_of_their_settings_and_each_has_its_code() -> None:
    files = {file.stem for file in (PACKAGE / "config" / "methods").glob("[!_]*.py")}
    assert set(METHODS) == {name.replace("_", "-") for name in files}
    assert set(MethodsSettings.model_fields) == files
    assert files == {file.stem for file in (PACKAGE / "methods").glob("[!_]*.py")}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("nearest", "Nearest"),
        ("q-diffusion", "Q-Diffusion"),
        ("ptqd", "PTQD"),
        ("efficientdm", "EfficientDM"),
        ("tfmq-dm", "TFMQ-DM"),
        ("quest", "QuEST"),
        ("quest+tla-only", "QuEST"),
        ("mine", "mine"),
    ],
)
def test_titles_are_those_of_the_papers(method: str, expected: str) -> None:
    assert title(method) == expected


def test_a_variant_has_the_files_of_its_method() -> None:
    assert (base_method("tfmq-dm+x"), python_name("tfmq-dm+x")) == ("tfmq-dm", "tfmq_dm")


def test_a_protocol_finds_the_settings_of_a_method_and_of_its_variants(settings: DatasetSettings) -> None:
    for method in METHODS:
        found = settings.method(method)
        assert type(found).__module__ == f"quest.config.methods.{python_name(method)}"
        assert settings.method(f"{method}+x") is found


SETTINGS = '''"""Half: its settings."""

from quest.config.method import MethodSettings


class HalfSettings(MethodSettings):
    """Half of the levels."""

    title = "Half-DM"
    share: float = 0.5
'''
USE = """
from quest import methods
from quest.config.methods import METHODS, title
from quest.config.reference import markdown
from quest.config.run import RunSettings
from quest.config.values import Bits
assert "half-dm" in METHODS, METHODS
assert title("half-dm+x") == "Half-DM"
assert methods.get("half-dm").quantize() == "done"
assert methods.starts_from("half-dm", methods.get("half-dm").HalfSettings()) is None
assert "methods.half_dm" in markdown()
"""


def test_a_method_is_added_by_its_two_files(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "quest", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "quest" / "config" / "methods" / "half_dm.py").write_text(SETTINGS)
    (tmp_path / "quest" / "methods" / "half_dm.py").write_text(
        'from quest.config.methods.half_dm import HalfSettings\n\n\ndef quantize():\n    return "done"\n'
    )
    used = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert used.returncode == 0, used.stderr
