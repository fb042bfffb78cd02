"""Histograms: every value of the widest layers is in one bin, the same bins for all versions of the weights."""

from __future__ import annotations

import itertools

from quest.studies import histograms
from quest.studies.distributions import FINETUNED, FULL, RECONSTRUCTED
from quest.studies.subject import Subject, outputs


def test_bins_hold_all_values_of_the_widest_layers(subject: Subject):
    rows = histograms.measure(subject)
    assert [len(axes.lines) for axes in histograms.chart("tiny", rows).axes] == [3, 3, 3]
    states, network = subject.states(), subject.quantized(subject.bits, calibrated=False)
    with network.quantizing(weights=False, activations=False):
        found = list(outputs(network, states))
    widest = max(found[0][1], key=lambda name: max((o[name].max() - o[name].min()).item() for _, o in found))
    names = list(dict.fromkeys(row["layer"] for row in rows))
    assert len(names) == histograms.LAYERS
    assert names[0] == widest
    for name in names:
        bins = [row for row in rows if row["layer"] == name]
        assert len(bins) == histograms.BINS
        assert all(a["high"] == b["low"] for a, b in itertools.pairwise(bins))
        values = sum(output[name].numel() for _, output in found)
        for version in (FULL, RECONSTRUCTED, FINETUNED):
            assert sum(row[version] for row in bins) == values
