"""PTQD: scales as Q-Diffusion learns them, then the noise of the quantized network, at each width."""

from __future__ import annotations

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.methods.ptqd import PtqdSettings
from quest.config.values import Bits
from quest.estimate import unitwise, work
from quest.estimate.unitwise import caches as caches
from quest.estimate.unitwise import passed as passed
from quest.estimate.work import CHUNK, FORWARD, QUANTIZED, Work


def calls(settings: DatasetSettings, own: PtqdSettings, bits: str) -> Work:
    """Trajectories of the quantized network run beside full precision's."""
    width = unitwise.learned_scales(settings, own, own.sets)
    for count in (own.trajectories, own.held_out):
        width += work.sampled(FORWARD, settings, count, CHUNK) + work.sampled(QUANTIZED, settings, count, CHUNK)
    return work.times(width, 1 + len(methods.get("ptqd").lower_bits(own, Bits.parse(bits).activation)))
