"""Published networks at their true size, without a byte of them: layers by role, parameters, size on grids."""

from __future__ import annotations

import json
import resource
from collections import Counter
from pathlib import Path

import pytest
import torch

from quest import architectures
from quest.deploy import inspection
from tests.architectures.truesize import TRUE_SIZE

ATTENTION = ("attention_q", "attention_k", "attention_v", "attention_out")
# Layers by role; counted by hand from the papers' tables of blocks.
ROLES = {
    "sdxl": {
        # Transformer blocks: 2 · 2 + 2 · 10 on the way down, 10 in the middle, 3 · 10 + 3 · 2 on the way up.
        **dict.fromkeys(("attention_q", "attention_out"), 2 * 70),
        **dict.fromkeys(("attention_k", "attention_v", "cross_attention_k", "cross_attention_v"), 70),
        "feed_forward": 2 * 70,
        "projection": 2 * 11,
        "convolution": 2 * 17,
        "time_projection": 17,
        "shortcut": 2 + 9,
        "time_mlp": 2,
        "condition": 2,
        **{"downsample": 2, "upsample": 2, "first": 1, "last": 1},
    },
    "dit-xl-2": {
        **dict.fromkeys(ATTENTION, 28),
        **{"feed_forward": 2 * 28, "time_projection": 28 + 1, "time_mlp": 2 * 28, "first": 1, "last": 1},
    },
    "pixart-sigma": {
        **dict.fromkeys(("attention_q", "attention_out"), 2 * 28),
        **dict.fromkeys(("attention_k", "attention_v", "cross_attention_k", "cross_attention_v"), 28),
        **{"feed_forward": 2 * 28, "time_projection": 1, "time_mlp": 2, "condition": 2, "first": 1, "last": 1},
    },
    "sd3-medium": {
        # Two streams, of which the last block ends one.
        **dict.fromkeys(("attention_q", "attention_k", "attention_v"), 2 * 24),
        **{"attention_out": 2 * 24 - 1, "feed_forward": 2 * (2 * 24 - 1), "time_projection": 2 * 24 + 1},
        **{"time_mlp": 2, "condition": 2 + 1, "first": 1, "last": 1},
    },
    "flux-dev": {
        **dict.fromkeys(("attention_q", "attention_k", "attention_v"), 2 * 19 + 38),
        **{"attention_out": 2 * 19, "feed_forward": 4 * 19 + 2 * 38, "time_projection": 2 * 19 + 38 + 1},
        **{"time_mlp": 2, "condition": 2 + 2 + 1, "first": 1, "last": 1},
    },
}


@pytest.mark.parametrize("name", TRUE_SIZE)
def test_parameters_and_roles(name: str) -> None:
    parameters, kind, config = TRUE_SIZE[name]
    with torch.device("meta"):
        network = architectures.build(kind, config)
    assert all(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert Counter(map(str, architectures.of(network).roles().values())) == ROLES[name]


@pytest.mark.parametrize("name", ["dit-xl-2", "flux-dev"])
def test_inspection_takes_no_memory(name: str, tmp_path: Path) -> None:
    parameters, kind, config = TRUE_SIZE[name]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind} | config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspection.inspect(tmp_path, "w4a8", "quest")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10 < 300  # MiB; 4 bits of DiT take 357
    assert found.parameters == parameters
    assert found.full_precision_mib == pytest.approx(parameters * 4 / 2**20)
    grids = sum(group.parameters for group in found.layers)
    assert grids + sum(rest.parameters or 0 for rest in found.not_quantized) == parameters
    rest = (parameters - grids) * 4 / 2**20
    assert found.mib == pytest.approx(grids / 2 / 2**20 + rest, rel=0.02)  # and scales
