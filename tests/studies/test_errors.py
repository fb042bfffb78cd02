"""Errors of the stages: those of the networks that the method went through, the last being the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from quest.config.dataset import DatasetSettings
from quest.learning import finetuning
from quest.methods import quest as method
from quest.quantization import storage
from quest.quantization.roles import Role
from quest.studies import errors
from quest.studies.subject import Subject


def test_the_stage_that_is_run_again_is_the_one_that_the_checkpoint_went_through(subject: Subject):
    made = {}
    for stage, network in errors.networks(subject):
        if stage == "TLA":
            # Going on from it gives the very checkpoint, whose time projections and other scales it then has.
            second = method.attention_alignment(network, subject.settings.methods.quest)
            full = subject.quantized(subject.bits, subject.settings.methods.quest.sets, calibrated=False)
            targets = second.record(full, subject.calibration)
            finetuning.finetune(network, subject.calibration, second, targets, subject.seed, teacher=full)
            made = storage.export(network)
    for name, tensor in storage.export(subject.checkpoint().network).items():
        assert torch.equal(made[name], tensor), name


def test_rows_and_errors(subject: Subject):
    rows = errors.measure(subject)
    layers = subject.quantized(subject.bits, calibrated=False).layers()
    assert len(rows) == 4 * 2 * len(layers)
    first = {row["stage"]: row["error"] for row in rows if row["layer"] == "time_embedding.linear_1"}
    assert list(first) == list(errors.STAGES)
    assert [len(axes.lines) for axes in errors.chart("tiny", rows).axes] == [4, 4]
    assert all(0 < row["error"] < 10 for row in rows)
    changed = [name for name in layers if layers[name].role is Role.TIME_PROJECTION]
    error = {(row["stage"], row["layer"]): row["error"] for row in rows}
    assert all(error["TLA", name] != error["reconstruction", name] for name in changed)


def test_a_checkpoint_of_another_method_is_refused(subject: Subject, make_settings: Callable[..., DatasetSettings]):
    given = {**subject.files, "checkpoint": subject.files["checkpoints"][1:2]}
    with pytest.raises(ValueError, match="made by nearest; expected quest's"):
        list(errors.networks(replace(subject, files=given)))
