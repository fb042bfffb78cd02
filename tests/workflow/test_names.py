"""Names and paths are no shell code, whatever is in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import PROTOCOL, RUN, Plan, Project, scratch

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
HOSTILE = "a b'c\"d $(touch pwned) `touch pwned`; touch pwned & é"
MODEL = f"data/models/{HOSTILE}/model $(touch pwned).safetensors"
EXTRACTOR = f"data/models/{HOSTILE}/weights {HOSTILE}.pth"
CLIP = f"data/models/{HOSTILE}/clip 'model'.safetensors"
PROMPTS = f"data/prompts/{HOSTILE}.txt"
BATCH = f"data/references/{HOSTILE}.npz"
BROUGHT = (MODEL, EXTRACTOR, CLIP, PROMPTS, BATCH)


@pytest.fixture
def hostile(tmp_path: Path, stub_environment: Path) -> Project:
    """A checkout in such a folder, with a dataset all of whose files have such names."""
    project = scratch(tmp_path / HOSTILE / "quest", stub_environment)
    protocol: dict[str, Any] = {key: PROTOCOL[key] for key in PROTOCOL if key not in ("pretrain", "real_images")}
    protocol |= {
        "model": MODEL,
        "extractor": EXTRACTOR,
        "reference_batch": BATCH,
        "condition": {"prompts": PROMPTS},
        "evaluation": {"images": 20, "shards": 2, "clip": {"model": CLIP, "prompts": PROMPTS}},
    }
    for file, content in (("config.yaml", RUN | {"datasets": ["mine"]}), ("datasets/mine.yaml", protocol)):
        (project.root / "config" / file).write_text(yaml.safe_dump(content, allow_unicode=True))
    for name in BROUGHT:
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).write_text(f"content of {name}")
    return project


@pytest.mark.workflow
def test_a_whole_run_of_files_with_hostile_names(hostile: Project, tmp_path: Path) -> None:
    planned = {str(job.output[0]) for job in Plan(hostile).jobs if job.rule.name != "bring"}
    hostile.snakemake(QUEST_STUB_ARGUMENTS="arguments.jsonl")
    assert {call.split()[1] for call in hostile.calls()} == planned
    assert not list(tmp_path.rglob("pwned"))
    calls = [json.loads(line) for line in (hostile.root / "arguments.jsonl").read_text().splitlines()]
    given = {name for call in calls for name in call if name in BROUGHT}
    assert given == {MODEL, EXTRACTOR}  # the others are named in the settings
    settings = [json.loads(call[call.index("--settings") + 1]) for call in calls if "--settings" in call]
    assert {each["extractor"] for each in settings} == {EXTRACTOR}
    assert PROMPTS in {each["condition"]["prompts"] for each in settings if each.get("condition")}


@pytest.mark.workflow
@pytest.mark.parametrize("name", [EXTRACTOR, PROMPTS, BATCH], ids=["extractor", "prompts", "batch"])
def test_a_file_with_a_hostile_name_is_asked_for(hostile: Project, name: str, tmp_path: Path) -> None:
    (hostile.root / name).unlink()
    assert f"{name}: missing" in hostile.snakemake(check=False)
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_every_name_in_a_command_is_quoted(file: Path) -> None:
    for command in re.findall(r"shell:\n((?: +\".*\n)+)", file.read_text()):
        for name in re.findall(r"(?<!\{)\{([^{}]+)\}(?!\})", command):
            assert name.endswith(":q") or name.startswith("params."), f"{name} in {command}"
        for name in re.findall(r"\{params\.(\w+)\}", command):
            # The one kind that is more than one word: options that are made quoted.
            quoted = r"(option\(|study_options|refusing\(CELLS\.convergence\))"
            assert re.search(rf"^        {name}={quoted}", file.read_text(), re.MULTILINE), name
