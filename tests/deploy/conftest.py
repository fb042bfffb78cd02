"""What the tests of deploying share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def digits_file() -> Path:
    """The embedded model of digits, as it lies in the store."""
    store = ROOT / "data/store/files/md5"
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())
    (listing,) = [out["md5"] for out in lock["stages"]["pretrain"]["outs"] if out["path"] == "data/models"]
    files = {each["relpath"]: each["md5"] for each in json.loads((store / listing[:2] / listing[2:]).read_text())}
    md5 = files["digits/denoiser.safetensors"]
    return store / md5[:2] / md5[2:]
