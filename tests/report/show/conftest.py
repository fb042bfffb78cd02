"""A folder with results of two small datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from result_files import CELLS
from show_files import write_cell, write_images


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """digits with images of seed 0, and of two seeds; a variant; shapes-text with prompts."""
    for seed in (0, 1):
        for number, (method, bits) in enumerate([*CELLS, ("quest+tla-only", "w4a4")]):
            file = write_cell(tmp_path, method, bits, seed)
            if seed == 0:
                write_images(file, 10 * number)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a <b>small</b> circle</script>\na large star\n", encoding="utf-8")
    for number, (method, bits) in enumerate([("fp", "w32a32"), ("quest", "w4a4")]):
        file = write_cell(tmp_path, method, bits, dataset="shapes-text")
        write_images(file, 10 * number, channels=3, condition={"classes": None, "prompts": str(prompts)})
    return tmp_path
