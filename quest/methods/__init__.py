"""Quantization methods, one file each, found by the name of the file (``-`` written ``_``).

A method is two files: ``config/methods/<name>.py`` with its settings and title, and ``methods/<name>.py`` with
    quantize(network, calibration, settings, seed, progress) -> Outcome.
It finds the network with its weights on their grids (rounded as reconstructed, where the method starts from a
reconstruction) and leaves it with all activation scales calibrated. What takes long it puts into ``progress``
(`quest.learning.progress`) as it goes, and takes from there after it was killed. It may have too
    paper_policy(bits, places) -> Policy, where its paper leaves layers out: used where its settings say ``policy:
    paper``; ``places`` are names of layers in the network (`quest.architectures`);
    quantizer(settings, quantizer) -> QuantizerSettings, activation grids of the method's own, not the run's;
    lower_bits(settings, activation_bits) -> tuple[int, ...], activation bits below the run's that single sampling steps
    may use.
Importing this module costs nothing: workflows ask it what a method starts from.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from quest.config.method import PAPER, MethodSettings, PolicyName, Rounding
from quest.config.methods import METHODS, base_method, python_name
from quest.config.reading import unknown

if TYPE_CHECKING:
    from quest.diffusion.correction import Correction


class Outcome(NamedTuple):
    """What a method has to say beside the network that it leaves behind.

    notes: facts about the training, for the checkpoint's manifest. correction: of the sampler, where the method makes
    one; it travels in the checkpoint.
    """

    notes: dict[str, Any]
    correction: Correction | None = None


def get(name: str) -> Any:
    """The module of a method, or of a variant's method. Raises ValueError for an unknown name."""
    base = base_method(name)
    if base not in METHODS:
        raise ValueError(f"--method: {unknown(base, METHODS)}")
    return importlib.import_module(f"quest.methods.{python_name(base)}")


def policies() -> list[str]:
    """The policies that rounding may be learned under."""
    named = [name for name in get_args(PolicyName) if name != PAPER]
    return [*named, *(f"{method}-{PAPER}" for method in METHODS)]


def starts_from(method: str, settings: MethodSettings) -> Rounding | None:
    """The learned rounding that a method's cell with these settings needs, if it needs any."""
    if settings.grouping is None or getattr(settings, "rounding", "learned") != "learned":
        return None
    return Rounding(settings.grouping, policy_name(method, settings))


def policy_name(method: str, settings: MethodSettings) -> str:
    """The policy of a method's cell with these settings; that of its paper is "<method>-paper"."""
    return f"{base_method(method)}-{PAPER}" if settings.policy == PAPER else settings.policy
