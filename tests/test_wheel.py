"""The library as `pip install quest-diffusion` gives it: alone, outside the checkout, without the extras."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = "quest-diffusion"
DATA = {".css", ".html", ".js"}
SMALL = """
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
import quest

unet = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)
pipeline = DDPMPipeline(unet, DDPMScheduler())
few = {"tla_epochs": 1, "tla_samples": 2, "cma_epochs": 1, "cma_samples": 2}
for method, settings in {"nearest": {}, "quest": few}.items():
    model = quest.quantize(
        pipeline, "w8a8", method, steps=2, settings=settings, device="cpu",
        calibration={"samples_per_step": 4}, reconstruction={"iterations": 2, "samples": 4},
    )
    quest.save(model, f"{method}.safetensors")
    torch.save(model.sample(3, seed=1), f"{method}.pt")

from quest.estimate.calls import Calls, Took
Calls.take = lambda *_: Took(0.001, 1e6)
settings = {"calibration": {"samples_per_step": 4}, "images": 2, "batch_size": 2}
quest.convert(pipeline, "folder", bits="w8a8", method="nearest", steps=2, settings=settings, device="cpu")
"""
AGAIN = """
import torch, quest

for method in ("nearest", "quest"):
    model = quest.load(f"{method}.safetensors", device="cpu")
    assert model.account()["mean_weight_bits"] == 8
    print(model, torch.equal(model.sample(3, seed=1), torch.load(f"{method}.pt")))
print(quest.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves folders behind."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "quest", source / "quest", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    subprocess.run([sys.executable, "-m", "pip", *build, folder, source], check=True)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an empty environment with the wheel and the packages that it requires, taken from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    install = ("install", "--quiet", "--no-deps", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", "--python", folder / "bin/python", *install, wheel], check=True)
    (installed,) = importlib.metadata.distributions(name=PROJECT, path=[str(site)])
    for package in required(installed.requires or []):
        for entry in entries(package):
            if not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    return folder / "bin"


def required(requirements: list[str]) -> Iterator[importlib.metadata.Distribution]:
    """The distributions that installing ``requirements`` brings, here and now."""
    todo, seen = [(Requirement(each), "") for each in requirements], set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras} - {each for known, each in seen if known == name}:
            found = importlib.metadata.distribution(name)
            if not any(known == name for known, _ in seen):
                yield found
            seen.add((name, wanted))
            todo += [(Requirement(each), wanted) for each in found.requires or []]


def entries(package: importlib.metadata.Distribution) -> set[Path]:
    """What a distribution has at the top of site-packages."""
    tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return {Path(str(package.locate_file(top))) for top in tops}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_the_face(environment: Path, tmp_path: Path) -> None:
    made = run(environment / "python", "-c", SMALL, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "folder/card.html").is_file()
    again = run(environment / "python", "-c", AGAIN, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    *lines, place = again.stdout.splitlines()
    assert lines == ["<nearest w8a8, 2 ddim steps> True", "<quest w8a8, 2 ddim steps> True"]
    assert Path(place).is_relative_to(environment.parent), "the installed library, not the checkout's"


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("table", "--help"), "pandas"),
        (("compare", "digits/quest-w4a4"), "tabulate"),
        (("shapes", "picture"), "matplotlib"),
    ],
)
def test_a_missing_extra_is_one_sentence(
    environment: Path, tmp_path: Path, command: tuple[str, ...], package: str
) -> None:
    done = run(environment / "quest", "--quiet", *command, cwd=tmp_path)
    expected = f"quest {command[0]}: needs {package}, which `pip install '{PROJECT}[workflow]'` brings"
    assert (done.returncode, done.stderr) == (1, f"Error: {expected}\n")


def test_packages_are_called_what_pip_calls_them(environment: Path, tmp_path: Path) -> None:
    program = """
from quest.cli.extras import sentence
for name in ("sklearn.datasets", "nowhere", "torch"):
    print(sentence("pretrain", ModuleNotFoundError(name=name)))
"""
    done = run(environment / "python", "-c", program, cwd=tmp_path)
    expected = f"quest pretrain: needs scikit-learn, which `pip install '{PROJECT}[workflow]'` brings"
    assert done.stdout.splitlines() == [expected, "None", "None"], "others are faults of ours"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("config", "check"), "config/config.yaml: No such file or directory; run from the project's folder or name"),
        (("calibrate", "digits", "--model", "m", "--output", "o"), "config/datasets: no such folder; run from the"),
    ],
)
def test_outside_a_checkout(environment: Path, tmp_path: Path, command: tuple[str, ...], sentence: str) -> None:
    done = run(environment / "quest", "--quiet", *command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_help_names_every_command_without_the_extras(environment: Path, tmp_path: Path) -> None:
    done = run(environment / "quest", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"finetune", "table", "compare"} <= set(done.stdout.split())


def test_files_that_are_no_code_are_in_the_wheel(wheel: Path) -> None:
    places = {str(file.relative_to(ROOT)) for file in (ROOT / "quest").rglob("*.*") if file.suffix in DATA}
    assert places, "there are some"
    assert places <= set(zipfile.ZipFile(wheel).namelist())


def test_the_extras(wheel: Path) -> None:
    (built,) = importlib.metadata.distributions(path=[str(wheel)])
    requirements = [Requirement(each) for each in built.requires or []]

    def brought(extra: str) -> dict[str, set[str]]:
        wanted = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
        return {each.name: each.extras for each in wanted}

    workflow = {"snakemake", "dvc", "mlflow"}
    assert not workflow & set(brought(""))
    assert workflow < set(brought("workflow"))
    assert brought("dev")[PROJECT] == {"workflow", "docs"}, "the environment of `make` has everything"
