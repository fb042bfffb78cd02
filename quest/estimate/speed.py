"""What calls take on this machine: measured once, kept in a small file, and read from lines between what was measured.

A network that is too large to be timed here in seconds is reckoned from the largest that is not: a call takes as many
times longer as it has operations, a pass over all units as many times again as there are units.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from quest import artifacts, processor
from quest.bench import testkit
from quest.config.dataset import DatasetSettings
from quest.estimate import methods, networks, work
from quest.estimate.calls import Calls, Took
from quest.estimate.networks import INCEPTION_FLOPS, Model, Size
from quest.estimate.work import Call

log = logging.getLogger(__name__)

FILE = Path("data/speed.json")
THREADS = 1  # of a job, as the rules ask for; more are taken to be as much faster
REFERENCE_FLOPS = 5e9
"""Operations of a sample that a network must have to stand in for larger ones."""
REFERENCE_BATCHES = (1, 2)
"""Of the network that stands in for larger ones: from two, what a step does with weights and with samples are told
apart."""
_FIRST, _BEGIN = 16, 3e10  # batch that is timed first; fewer where a call would be of more operations
_LONGEST = {"cpu": 3.0, "cuda": 10.0}  # seconds of a call that is worth timing
_LARGEST = {"cpu": 2e10, "cuda": 1e13}  # operations of one sample, of a network that is timed
_IMAGES = 2_000  # of which all metrics are timed at most
_BY_UNIT = (work.RECORD, work.RECORD_FULL)

# What a process imports until it works, by rule, where it needs it or later; other rules import what `finetune` does.
_DIFFUSION = "quest.stages.finetune, quest.architectures.unet, diffusers.models.unets.unet_2d_condition"
_IMPORTS = {
    "score": "quest.stages.score",
    "table": "quest.stages.table, quest.report.tables, pandas",
    "write_table": "quest.stages.table, quest.report.tables, pandas",
    "paper": "quest.stages.table, quest.report.tables, pandas",
    "preview": "quest.stages.preview, safetensors.torch",
    "figures": "quest.stages.figures, matplotlib.pyplot, safetensors.torch",
    "track": "quest.stages.track, mlflow.tracking, quest.report.tracking.store",
    "track_paper": "quest.stages.track, mlflow.tracking, quest.report.tracking.store",
    "measure": "quest.stages.measure, safetensors.torch, torchmetrics.image.kid",
    "reference": "quest.stages.reference, safetensors.torch, sklearn.datasets",
}
_REPORTING = "import json, time; from quest import resident; print(json.dumps([time.process_time(), resident.peak()]))"


class Network:
    """A dataset's network: how large it is, and what was measured of it, by kind and batch."""

    def __init__(self, dataset: str, settings: DatasetSettings, model: Model):
        self.dataset, self.settings, self.model = dataset, settings, model
        self.size: Size = networks.size(model)
        decides = [self.size.flops, self.size.parameters, artifacts.plain(settings.quantizer)]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        self.name = f"{settings.model.parent.name}-{digest}"
        self._calls: Calls | None = None

    def take(self, kind: str, batch: int, device: torch.device) -> Took:
        """Time a call."""
        self._calls = self._calls or Calls(self.settings, self.model, device)
        return self._calls.take(kind, batch)


class Speed:
    """This machine's speed. path: of the file that it is kept in; a file of another machine or torch keeps its part."""

    def __init__(self, path: Path, device: torch.device):
        self.path, self.device = path, device
        self.machine = _machine(device)
        self._whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._known: dict[str, Any] = self._whole.setdefault(self.machine, {"starts": {}, "networks": {}})

    def forget(self) -> None:
        """Measure anew what is asked for from now on."""
        self._known.update(starts={}, networks={})

    def _save(self) -> None:
        """Keep what was measured, so that nothing is measured twice however the process ends."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_bytes(self.path, json.dumps(self._whole, indent=1, sort_keys=True).encode() + b"\n")

    def start(self, rule: str) -> Took:
        """What a rule's process takes to begin: its imports, measured when they are missing."""
        modules = _IMPORTS.get(rule, _DIFFUSION)
        if modules not in self._known["starts"]:
            log.info("measuring the start of %s", rule)
            code = f"import quest.cli, {modules}; {_REPORTING}"
            ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds, size = json.loads(ended.stdout.splitlines()[-1])
            self._known["starts"][modules] = [seconds, size]
            self._save()
        return Took(*self._known["starts"][modules])

    def measured(self, network: Network) -> bool:
        """Whether the network itself is timed here, or reckoned from `reference`."""
        return network.size.flops <= _LARGEST[self.device.type]

    def measure(self, network: Network, calls: Iterable[Call]) -> None:
        """Time what is missing of these calls of a network that is `measured`: each kind at few batches."""
        known = self._known["networks"].setdefault(network.name, {})
        wanted: dict[str, list[int]] = {}
        for call in calls:
            wanted.setdefault(call.kind, []).append(call.batch)
        few = max(1, min(_FIRST, int(_BEGIN / network.size.flops)))
        for kind, batches in sorted(wanted.items()):
            points = known.setdefault(kind, {})
            if few < _FIRST and _of_weights(kind):  # too slow for more, and weights must be told from samples
                for batch in REFERENCE_BATCHES:
                    if str(batch) not in points:
                        self._put(network, kind, batch)
                continue
            if not points:
                self._put(network, kind, min(min(batches), _IMAGES // 2 if kind == work.METRICS else few))
            batch = max(map(int, points))
            # As large as the jobs have it, or as is timed in seconds.
            longest = _LONGEST[self.device.type] * (5 if kind == work.METRICS else 1)
            most = int(batch * longest / max(points[str(batch)][0], 1e-6))
            further = min(max(batches), most, _IMAGES if kind == work.METRICS else most)
            if further > 1.5 * batch:
                self._put(network, kind, further)

    def _put(self, network: Network, kind: str, batch: int) -> None:
        known = self._known["networks"].setdefault(network.name, {}).setdefault(kind, {})
        log.info("measuring %s, %s of %d", network.dataset, kind, batch)
        known[str(batch)] = list(network.take(kind, batch, self.device))
        self._save()

    def took(self, network: Network, call: Call, reference: Network | None = None) -> Took:
        """What a call takes. reference: the network that was measured in the place of one that is too large."""
        if self.measured(network):
            return line(self._known["networks"][network.name][call.kind], call.batch)
        assert reference is not None
        ours, theirs = network.size, reference.size
        known = self._known["networks"][reference.name]
        if call.kind == work.METRICS:
            return line(known[call.kind], call.batch)
        as_forward = call.kind in (work.DECODE, work.FEATURES)
        once, each = parts(known[work.FORWARD if as_forward else call.kind])
        operations = {work.DECODE: ours.decode_flops, work.FEATURES: INCEPTION_FLOPS}.get(call.kind, ours.flops)
        times = operations / theirs.flops
        if call.kind in _BY_UNIT:
            times *= ours.units / theirs.units
        heavier = ours.parameters / theirs.parameters
        if call.kind == work.BUILD:  # of weights alone
            return Took(heavier * (once.seconds + each.seconds), heavier * (once.bytes + each.bytes))
        wider = times if as_forward else sum(ours.output_bytes.values()) / sum(theirs.output_bytes.values())
        seconds = heavier * once.seconds + times * each.seconds * call.batch
        return Took(seconds, heavier * once.bytes + wider * each.bytes * call.batch)


def parts(points: dict[str, list[float]]) -> tuple[Took, Took]:
    """What a call takes whatever its batch, and what a sample adds; of one batch, all is the samples'."""
    known = sorted((int(size), took) for size, took in points.items())
    (small, low), (large, high) = known[0], known[-1]
    each = [
        b / large if small == large else min(max((b - a) / (large - small), 0.0), b / large)
        for a, b in zip(low, high, strict=True)
    ]
    return Took(*(b - one * large for b, one in zip(high, each, strict=True))), Took(*each)


def line(points: dict[str, list[float]], batch: int) -> Took:
    """Between and beyond what was measured at two batches; of one, in proportion to the batch."""
    known = sorted((int(size), Took(*took)) for size, took in points.items())
    (small, low), (large, high) = known[0], known[-1]
    if small == large:
        return Took(low.seconds * batch / small, low.bytes * batch / small)
    share = (batch - small) / (large - small)
    return Took(*(max(0.0, a + share * (b - a)) for a, b in zip(low, high, strict=True)))


def batches(kind: str) -> tuple[int, ...]:
    """The batches that a kind of call is timed at on the network that stands in for larger ones."""
    one, two = REFERENCE_BATCHES
    return (one,) if kind == work.BUILD else (one, two) if _of_weights(kind) else (two,)


def _of_weights(kind: str) -> bool:
    """Whether a call is a step that does something with every weight."""
    return kind == work.ROUNDING or kind in methods.kinds()


def reference(settings: DatasetSettings) -> Network:
    """What networks are reckoned from that are too large for this machine: CIFAR-10's, with random weights, on the
    grids of ``settings``. Of large networks memory has room for what few samples' units gave, so that recording is
    reckoned as all from the start."""
    small = {"cache_mib": 1}
    methods = settings.methods.model_copy(
        update={"q_diffusion": settings.methods.q_diffusion.model_copy(update=small)}  # type: ignore[attr-defined]
    )
    own = settings.model_copy(
        update={
            "model": Path("data/models/reference/none"),
            "condition": None,
            "reconstruction": settings.reconstruction.model_copy(update=small),
            "methods": methods,
        }
    )
    return Network("a network of 35.7 M parameters", own, Model(testkit.cifar10_unet()))


def _machine(device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor.name()
    return f"{where}; torch {torch.__version__}; {THREADS} threads"
