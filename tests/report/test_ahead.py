"""Who is ahead: which cells are compared, over which chains, and how often the interval holds the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from result_files import row, write_metrics

from quest.artifacts import load_json
from quest.config.methods import METHODS
from quest.report import ahead, tables
from quest.report.paired import interval, interval_of_images
from quest.report.rows import Row

T = 4.302652729749462  # Student's t at 0.975 with two degrees of freedom, as in printed tables


def cell(method: str, psnr: Mapping[int, float], bits: str = "w4a4", shift: float = 0.0, chains: int = 9) -> list[Row]:
    """Rows of one method by seed; only the first ``chains`` seeds are chains of their own."""
    return [
        row(method, bits, seed, psnr=value, fid=10 - shift + seed, chain_seed=seed % chains)
        for seed, value in psnr.items()
    ]


def test_the_interval_is_students_over_the_differences_of_each_chain():
    low, high = interval({0: 20.0, 1: 22.0, 2: 24.0}, {0: 21.0, 1: 24.0, 2: 27.0}) or (0, 0)
    reach = T * 1 / np.sqrt(3)  # differences of 1, 2 and 3
    assert (low, high) == pytest.approx((2 - reach, 2 + reach))
    assert interval({0: 20.0}, {0: 21.0}) is None


def test_the_interval_holds_the_truth_where_a_bootstrap_of_three_chains_does_not():
    """Chains that differ much or little beside their images, three of 100 images, 2,000 times."""
    generator = np.random.default_rng(0)
    for of_chains in (1.0, 0.02):
        held = resampled = 0
        draws = generator.integers(3, size=(300, 3))
        for _ in range(2_000):
            images = generator.normal(of_chains * generator.normal(size=(3, 1)), 1.0, (3, 100))
            means = images.mean(1)
            low, high = interval(dict.fromkeys(range(3), 0.0), dict(enumerate(means.tolist()))) or (0, 0)
            held += low <= 0 <= high
            # Images are resampled within chains by their normal limit.
            again = means[draws] + images.std(1, ddof=1)[draws] / 10 * generator.normal(size=draws.shape)
            low, high = np.quantile(again.mean(1), (0.025, 0.975))
            resampled += low <= 0 <= high
        assert 0.93 < held / 2_000 < 0.97, of_chains
        if of_chains == 1.0:
            assert resampled / 2_000 < 0.82


def test_the_interval_over_images_holds_the_truth():
    """Errors of images are skewed and go together, as those of two quantized networks do."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1_000):
        both = generator.normal(size=(2, 200))
        own, other = (np.exp(0.5 * both + 0.3 * generator.normal(size=both.shape) + log).tolist() for log in (0.0, 0.4))
        low, high = interval_of_images(own, other)
        held += low <= 10 * 0.4 / np.log(10) <= high
    assert 0.93 < held / 1_000 < 0.97


def test_ours_is_compared_with_every_other_else_the_best_is():
    assert ahead.OURS in METHODS
    values = {0: 20.0, 1: 21.0, 2: 22.0}
    better = {seed: value + 1 for seed, value in values.items()}
    others = cell("nearest", values) + cell("ptqd", better)
    (pair,) = ahead.build(others, {})
    assert (pair["first"], pair["second"], pair["chains"]) == ("PTQD", "Nearest", 3)
    found = [(pair["first"], pair["second"]) for pair in ahead.build(others + cell("traq", values), {})]
    assert found == [("TRAQ (ours)", "Nearest"), ("TRAQ (ours)", "PTQD")]


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((2.0, 2.5, 3.0), "ahead of"),
        ((-2.0, -2.5, -3.0), "behind"),
        ((0.1, 2.0, 5.0), "beside"),  # every chain says the same, and yet three of them cannot tell
        ((1.0,), None),
    ],
)
def test_the_rule(gains: tuple[float, ...], verdict: str | None):
    base = dict(enumerate((20.0, 25.0, 22.0)[: len(gains)]))
    rows = cell("nearest", base) + cell("traq", {seed: base[seed] + gain for seed, gain in enumerate(gains)}, shift=1)
    (pair,) = pairs = ahead.build(rows, {})
    assert pair["verdict"] == verdict
    assert pair["psnr"]["value"] == pytest.approx(np.mean(gains))
    assert pair["fid"]["value"] == pytest.approx(-1)
    assert (ahead.sheet(pairs) is None) == (verdict is None)


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "closer than"), (2.0, "farther than"), (1.0, "beside")])
def test_of_one_chain_the_interval_is_over_its_images(factor: float, verdict: str):
    """Two sampling seeds of one quantization; the images of both count."""
    generator = np.random.default_rng(0)
    errors: dict[str, list[float]] = {}
    rows = []
    for seed in range(2):
        image = np.exp(generator.normal(size=300)) / 100
        for method, scale in (("nearest", 1.0), ("traq", factor)):
            own = scale * image * np.exp(0.1 * generator.normal(size=300))
            rows += cell(method, {seed: -10 * float(np.log10(own.mean()))}, chains=1)
            errors[f"digits/{method}-w4a4-seed{seed}"] = own.tolist()
    (pair,) = pairs = ahead.build(rows, errors)
    assert (pair["chains"], pair["verdict"]) == (1, verdict)
    assert pair["psnr"]["high"] - pair["psnr"]["low"] < 0.3
    assert pair["psnr"]["low"] < pair["psnr"]["value"] < pair["psnr"]["high"]
    assert pair["psnr"]["value"] == pytest.approx(-10 * np.log10(factor), abs=0.1)
    assert pair["closer"] == pytest.approx({0.5: 1, 2.0: 0, 1.0: 0.5}[factor], abs=0.05)
    assert pair["fid"]["low"] is None
    sheet = ahead.sheet(pairs)
    assert sheet is not None
    assert "the interval is over the images of one chain" in sheet.notes[0]


def test_policies_and_bits_are_not_mixed():
    values = {0: 20.0, 1: 21.0}
    methods = ("traq", "nearest", "traq+everything", "nearest+everything")
    rows = [each for method in methods for each in cell(method, values)] + cell("nearest", values, "w8a8")
    found = [(pair["bits"], pair["first"], pair["second"]) for pair in ahead.build(rows, {})]
    assert found == [
        ("w4a4", "TRAQ (ours)", "Nearest"),
        ("w4a4", "TRAQ (ours, everything)", "Nearest (everything)"),
    ]


def test_only_chains_that_both_have_are_compared():
    """Seeds of one chain count once, and one that the other cell lacks not at all."""
    rows = cell("traq", {0: 23.0, 1: 24.0, 2: 25.0}) + cell("nearest", {0: 20.0, 1: 21.0, 3: 40.0})
    (pair,) = ahead.build(rows, {})
    assert pair["chains"] == 2
    assert pair["psnr"]["value"] == pytest.approx(3)
    seeds = {0: 20.0, 1: 21.0, 2: 22.0, 3: 23.0}
    gained = {seed: value + gain for (seed, value), gain in zip(seeds.items(), (1, 2, 3, 6), strict=True)}
    (pair,) = ahead.build(cell("nearest", seeds, chains=2) + cell("traq", gained, chains=2), {})
    assert pair["chains"] == 2
    assert (pair["psnr"]["low"], pair["psnr"]["high"]) == interval({0: 0.0, 1: 0.0}, {0: 2.0, 1: 4.0})


def test_cells_without_a_common_chain_are_not_compared():
    rows = cell("traq", {0: 23.0, 1: 24.0}) + cell("nearest", {2: 20.0, 3: 21.0}) + cell("ptqd", {0: 20.0, 1: 21.5})
    apart, beside = ahead.build(rows, {})
    assert (apart["chains"], apart["psnr"], apart["verdict"]) == (0, None, None)
    assert (beside["chains"], beside["verdict"]) == (2, "beside")


def test_a_number_that_is_missing_has_no_difference():
    rows = cell("traq", {0: 23.0, 1: 24.0}) + cell("nearest", {0: 20.0, 1: 21.5})
    rows[0]["fid"] = None
    sheet = ahead.sheet(ahead.build(rows, {}))
    assert sheet is not None
    ((*_, psnr, ratio, closer, fid),) = sheet.lines
    assert (psnr.replace("\u00a0", " "), ratio, closer, fid) == ("+2.75 [-0.43, +5.93]", "× 0.53", "–", "–")
    assert "interval over 2 chains" in sheet.notes[0]


def test_pairs_of_as_many_chains_say_so_once():
    rows = cell("traq", {0: 23.0, 1: 24.0, 2: 24.5}) + cell("nearest", {0: 20.0, 1: 21.5, 2: 21.0})
    rows += cell("quest", {0: 20.0, 1: 21.5})
    sheet = ahead.sheet(ahead.build(rows, {}))
    assert sheet is not None
    assert (sheet.headers[-1], [line[-1] for line in sheet.lines]) == ("Chains", ["3", "2"])
    assert "interval over chains" in sheet.notes[0]


def test_large_differences_have_four_digits():
    sheet = ahead.sheet(
        ahead.build(cell("traq", {0: 23.0, 1: 24.0}, shift=900.0) + cell("nearest", {0: 20.0, 1: 21.5}), {})
    )
    assert sheet is not None
    assert sheet.lines[0][-1].startswith("-900.0")


def test_it_stands_between_the_headline_and_the_other_measures(tmp_path: Path):
    """With what `quest measure` keeps of each image."""
    rows = [*cell("nearest", {0: 20.0, 1: 21.0}), *cell("traq", {0: 23.0, 1: 24.1}), row("fp", "w32a32")]
    notes = {"nearest": [0.3, 0.1], "traq": [0.1, 0.2], "fp": [0.0, 0.0]}
    files = [write_metrics(tmp_path, each, {"notes": {"mse_of_images": notes[each["method"]]}}) for each in rows]
    content = tables.build("digits", {file: load_json(file, "metrics") for file in files})
    titles = [sheet.title for sheet in tables.sheets(content)]
    assert titles == ["Quality, size and cost", "Who is ahead", "Other measures of the same images"]
    line = next(line for line in tables.to_markdown(content).splitlines() if "ahead of" in line)
    assert [text.strip() for text in line.split("|")[1:5]] == ["W4A4", "TRAQ (ours)", "ahead of", "Nearest"]
    assert line.split("|")[7].strip() == "50%"
    without = {key: value for key, value in content.items() if key != "ahead"}
    assert tables.sheets(without)[1].lines[0][6] == "–", "a table from before errors of images were kept"
