"""What a study is given is what it reads: nothing missing, nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest

from quest.studies import files

A, B = Path("a"), Path("b")


def test_files_are_named_as_the_study_reads_them() -> None:
    given = {"model": [A], "checkpoint": [A, B], "reconstruction": []}
    assert files("scales", given) == {"model": [A], "checkpoints": [A, B]}
    assert files("histograms", {"model": [A], "checkpoint": [B]}) == {"model": [A], "checkpoint": [B]}
    assert files("distributions", {"model": [A], "reconstruction": [B], "checkpoint": [A]}) == {
        "model": [A],
        "reconstruction": [B],
        "checkpoint": [A],
    }


@pytest.mark.parametrize(
    ("study", "given", "message"),
    [
        ("tokens", {}, "--model: found 0 files, the study tokens reads one"),
        ("tokens", {"model": [A, B]}, "--model: found 2 files, the study tokens reads one"),
        ("samples", {"preview": []}, "--preview: found 0 files, the study samples reads one or more"),
        ("histograms", {"model": [A]}, "--checkpoint: found 0 files, the study histograms reads one"),
        ("scales", {"model": [A]}, "--checkpoint: found 0 files, the study scales reads one or more"),
        ("tokens", {"model": [A], "preview": [B]}, "--preview: the study tokens reads model only"),
        (
            "scales",
            {"model": [A], "checkpoint": [A], "calibration": [B]},
            "--calibration: the study scales reads model, checkpoint only",
        ),
    ],
)
def test_what_is_missing_or_too_much_is_named(study: str, given: dict[str, list[Path]], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        files(study, given)
