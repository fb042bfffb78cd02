"""A size or a closeness is asked for: each layer gets bits of its own, which everything that comes out knows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file

import quest
from quest.cli import main
from quest.config.values import Bits, ConfigError
from quest.deploy import export
from quest.deploy.packed.assembly import packed_layers
from quest.own import choice, plan
from quest.own.choice import Candidates, Wish
from quest.own.plan import Wanted
from quest.sources import pipelines
from tests.own import brought
from tests.own.test_conversion import QUICK
from tests.own.test_going_on import ROOT, killed


def candidates(here: Path, method: str = "nearest", bits: str = "w8a8") -> Candidates:
    from quest.config.own import own_settings

    model = pipelines.of_pipeline(brought.pixels())
    wanted = Wanted(method, bits, quest.SamplerSettings(steps=2), None)
    settings = plan.settings_for(
        own_settings(brought.FEW, "test"), plan.images_of(model), here / "model.safetensors", wanted
    )
    return choice.candidates(model, settings, method, Bits.parse(bits))


def test_a_size_is_kept_also_after_a_kill(here: Path, monkeypatch: Any) -> None:
    """By the command, and by Python without a kill: the same to the last bit; folder, card and inspection know it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    brought.pixels().save_pretrained("theirs")
    Path("few.yaml").write_text(yaml.safe_dump(brought.FEW))
    given = ["--quiet", "quantize", "theirs", "--size", "0.62", "--method", "nearest", "--steps", "2"]
    given += ["--output", "ours", "--settings", "few.yaml", "--device", "cpu"]
    killed("choice.progress.safetensors", *given)
    assert not (here / "ours").exists()
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    assert "of float16; each of them stands in the card" in done.stdout

    report = json.loads(Path("ours/report.json").read_text())
    rows = report["mixed"]["rows"]
    bits = {row["layer"]: row["bits"] for row in rows}
    assert len(set(bits.values())) > 1
    half = 2 * report["network"]["parameters"]
    size = export.weights_of(Path("ours")).stat().st_size
    assert 0.6 * half < size <= 0.62 * half
    assert size <= report["mixed"]["bytes"] < size + 2_048, "what was counted is what is written"
    pipeline: Any = DiffusionPipeline.from_pretrained("ours", local_files_only=True)
    packed = packed_layers(pipeline.unet)
    assert {name: packed[name].description.bits for name in bits} == bits
    assert {name for name in packed if name not in bits} == {"conv_in", "conv_out"}, "the policy has 8 bits for these"
    assert f"| {rows[0]['layer']} | {rows[0]['weights']:,} | {rows[0]['bits']} |" in Path("ours/README.md").read_text()
    assert "Asked for: --size 0.62" in Path("ours/card.html").read_text()

    seen = CliRunner().invoke(main, ["--quiet", "inspect", "ours"])
    assert seen.exit_code == 0, seen.output
    assert f"nearest at {report['bits']}; asked for most w8a8, size 0.62" in seen.stdout
    plain = json.loads(CliRunner().invoke(main, ["--quiet", "inspect", "ours/unet", "--json"]).stdout)
    groups = [group for group in plain["layers"] if group["weight_bits"] is not None]
    for width in set(bits.values()) - {8}:
        assert sum(group["count"] for group in groups if group["weight_bits"] == width) == list(bits.values()).count(
            width
        )
    assert plain["mib"] == size / 2**20

    whole = quest.convert("theirs", "whole", size=0.62, **QUICK)
    assert whole.report["mixed"] == report["mixed"]
    network = "unet/diffusion_pytorch_model.safetensors"
    ours, expected = load_file(here / "ours" / network), load_file(here / "whole" / network)
    assert all((ours[name] == expected[name]).all() for name in expected), "bit for bit"


def test_a_closeness_by_a_method_that_learns(here: Path) -> None:
    made = quest.convert(brought.pixels(), "ours", psnr=20.0, **{**QUICK, "method": "quest"})
    mixed = made.report["mixed"]
    assert mixed["psnr"] >= 20
    assert mixed["wish"] == {"size": None, "psnr": 20.0}
    assert mixed["bytes"] < candidates(here).size(candidates(here).evenly(8))
    page = Path("ours/README.md").read_text()
    reached = made.report["closeness"]["psnr"] >= 20
    assert f"as close as asked for on the seeds of this card: {'it is' if reached else 'it is not'}." in page


def test_the_smallest_that_is_close_enough(here: Path) -> None:
    """Of a quality that grows with the bytes; and a wish beyond the finest is refused with what is possible."""
    found = candidates(here)
    ways = [found.evenly(bits) for bits in (2, 3, 4, 5, 6, 8)]
    drawn = []

    def quality(of: dict[str, int]) -> float:
        drawn.append(of)
        return 5.0 * next(iter(of.values()))

    assert choice._closest(20.0, found, ways, quality) == (found.evenly(4), 20.0)
    assert len(drawn) <= 1 + math.ceil(math.log2(len(ways) + 1))
    assert choice._closest(3.0, found, ways, quality) == (found.evenly(2), 10.0)
    with pytest.raises(
        ConfigError, match=r"--psnr: 41 dB; with every layer at 8 bits, .* come to 40 dB: ask for at most"
    ):
        choice._closest(41.0, found, ways, quality)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"size": 0.1},
            r"--size: 0.1 of the 0.09 MiB .* in float16; the least possible is 0.5\d+, with every layer at 2",
        ),
        ({"size": 0.4, "psnr": 20.0}, "--size and --psnr: both given; expected one"),
        ({"size": 0.0}, "--size: found 0; expected more than 0"),
        ({"psnr": float("nan")}, "--psnr: found nan; expected more than 0"),
        ({"size": 0.6, "bits": "w2a8"}, "--bits: w2a8 leaves no layer a choice; expected weight bits above 2"),
        (
            {"size": 0.6, "method": "ptqd", "settings": {**brought.FEW, "methods": {"ptqd": {"step_bits": [4]}}}},
            "methods.ptqd.step_bits: cannot be together with --size or --psnr",
        ),
    ],
)
def test_wishes_that_nobody_can_have(here: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quest.convert(brought.pixels(), "ours", **(QUICK | asked))
    assert not list(here.glob("ours*")), "nothing was begun"


def test_the_least_is_possible(here: Path) -> None:
    found = candidates(here)
    least = found.size(found.evenly(2))
    choice.check(Wish(size=least / found.half), found)
    with pytest.raises(ConfigError, match="the least possible is"):
        choice.check(Wish(size=(least - 1) / found.half), found)
    assert found.widths == [2, 3, 4, 5, 6, 8]
    assert candidates(here, bits="w4a8").widths == [2, 3, 4]
