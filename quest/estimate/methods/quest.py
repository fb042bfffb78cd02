"""QuEST: the teacher's outputs, then epochs of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from quest.config.dataset import DatasetSettings
from quest.config.methods.quest import QuestSettings
from quest.estimate import work
from quest.estimate.work import CHUNK, FORWARD, Work
from quest.quantization.roles import Role

if TYPE_CHECKING:
    from quest.estimate.calls import Calls
    from quest.estimate.networks import Size


def calls(settings: DatasetSettings, own: QuestSettings, _bits: str) -> Work:
    """A call of a stage's kind is a step: forward and back through the whole network."""
    found = work.chosen(settings, own.sets)
    for stage in own.stages:
        epochs, each, batch = (getattr(own, f"{_schedule(stage)}_{key}") for key in ("epochs", "samples", "batch_size"))
        samples, epochs = settings.calibration.steps * work.recorded(settings, each), max(1, round(own.passes * epochs))
        # The teacher's outputs: of each epoch's samples, unless all have the same.
        found += work.calls(FORWARD, samples, CHUNK, epochs if own.rotated and each < work.recorded(settings) else 1)
        found += work.calls(stage, samples / own.sets, batch, epochs * own.sets)
    return found


def caches(settings: DatasetSettings, own: QuestSettings, size: Size) -> list[float]:
    """The teacher's outputs of each stage: the noise, and those of the layers that the local loss matches."""
    found = []
    for stage in own.stages:
        roles = {"tla": (Role.TIME_PROJECTION,), "cma": own.cma_layers}.get(stage, size.output_bytes)
        outputs = sum(size.output_bytes.get(role, 0) for role in roles) if own.local_loss else 0
        samples = work.recorded(settings, getattr(own, f"{_schedule(stage)}_samples"))
        found.append(settings.calibration.steps * samples * (size.sample_bytes + outputs))
    return found


def _schedule(stage: str) -> str:
    return "tla" if stage == "tla" else "cma"  # full takes the schedule of stage 2


def step(timed: Calls, batch: int, stage: str) -> float:
    """Seconds of a step of a stage."""
    from quest.learning import finetuning
    from quest.methods import quest

    network, data = timed.quantized, timed.calibration(3 * batch)
    chosen = quest.STAGES[stage](network, timed.settings.methods.quest)  # type: ignore[attr-defined]
    few = replace(chosen, batch_size=batch, epochs=1, samples=3 * batch)  # an epoch is as many steps as batches
    targets = few.record(network, data)
    return timed.step(lambda steps: finetuning.finetune(network, data, replace(few, samples=batch * steps), targets, 0))


KINDS: dict[str, Callable[[Any, int], float]] = {
    stage: partial(step, stage=stage) for stage in ("tla", "cma", work.FULL)
}
