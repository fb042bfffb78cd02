"""The noise schedule that a published scheduler was trained on, as diffusers' DDIM scheduler.

Schedulers by their class: those of DDPM's family are samplers of one kind of model, x = √ᾱ·x₀ + √(1-ᾱ)·ε (Ho et al.
2020, eq. 4), and say in their configuration what it was trained on. Others are of another kind of model, whose network
would be asked at the wrong place for the wrong thing, and are refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from quest.artifacts import ArtifactError
from quest.diffusion.parametrization import KINDS
from quest.sources.weights import in_one_line

log = logging.getLogger(__name__)

_CLIPPING = {"clip_sample", "clip_sample_range"}
_THRESHOLDING = {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"}
_TRAINED = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("timestep_spacing", "steps_offset", "set_alpha_to_one", "rescale_betas_zero_snr"),
}
"""What says how a model was trained, and at which timesteps it is asked; all of it is used."""
_SIGMAS = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
_MULTISTEP = {
    *("solver_order", "algorithm_type", "solver_type", "lower_order_final", "euler_at_final", "use_lu_lambdas"),
    *("lambda_min_clipped", "final_sigmas_type", "variance_type", "use_flow_sigmas", "flow_shift", "predict_x0"),
    *("use_dynamic_shifting", "time_shift_type", "disable_corrector", "solver_p", "shift_terminal", *_SIGMAS),
}
_EULER = {"interpolation_type", "timestep_type", "sigma_min", "sigma_max", "final_sigmas_type", *_SIGMAS}
FAMILY: dict[str, set[str]] = {
    "DDPMScheduler": {"variance_type"},
    "DDPMParallelScheduler": {"variance_type"},
    "DDIMScheduler": set(),
    "DDIMParallelScheduler": set(),
    "PNDMScheduler": {"skip_prk_steps"},
    "DPMSolverMultistepScheduler": _MULTISTEP,
    "DPMSolverSinglestepScheduler": _MULTISTEP,
    "DPMSolverSDEScheduler": _SIGMAS | {"noise_sampler_seed"},
    "DEISMultistepScheduler": _MULTISTEP,
    "UniPCMultistepScheduler": _MULTISTEP | {"sigma_min", "sigma_max"},
    "SASolverScheduler": _MULTISTEP | {"predictor_order", "corrector_order", "tau_func"},
    "EulerDiscreteScheduler": _EULER,
    "EulerAncestralDiscreteScheduler": set(),
    "HeunDiscreteScheduler": _SIGMAS,
    "LMSDiscreteScheduler": _SIGMAS,
    "KDPM2DiscreteScheduler": _SIGMAS,
    "KDPM2AncestralDiscreteScheduler": _SIGMAS,
}
"""Schedulers of models trained as DDPM, and the fields of their own samplers, which the protocol replaces."""
_LIKE = "DDPMScheduler, DDIMScheduler, PNDMScheduler or EulerDiscreteScheduler"
_CLIPS = {name for name in FAMILY if name.startswith("DD")}
"""Those that keep the predicted image in [-1, 1] unless their file says otherwise."""
OTHERS = {
    "CM": "a consistency model",
    "ConsistencyDecoder": "a consistency model",
    "SCM": "a consistency model",
    "LCM": "a model distilled to consistency",
    "TCD": "a model distilled to consistency",
    "FlowM": "flow matching",
    "LTXEulerAncestralRF": "flow matching",
    "EDM": "EDM's preconditioned networks",
    "CosineDPMSolver": "EDM's preconditioned networks",
    "KarrasVe": "a variance-exploding process",
    "ScoreSde": "a stochastic differential equation in continuous time",
    "UnCLIP": "an image prior of its own sampler",
    "VQDiffusion": "discrete diffusion",
    "Amused": "masked tokens",
    "DDIMInverse": "inversion, not of sampling",
    "DPMSolverMultistepInverse": "inversion, not of sampling",
}
"""How the names of schedulers begin that are known and are not of DDPM's family, and what they are of."""
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


def training_schedule(config: Mapping[str, Any], place: Path | str, named: str | None = None) -> DDIMScheduler:
    """The schedule of a ``scheduler_config.json`` in the file ``place``.

    named: the scheduler's class that model_index.json has. Raises ArtifactError for a schedule that is not of DDPM's
    family, or is not known; fields that are not known are named in a warning.
    """
    classes = [name for name in (named, config.get("_class_name")) if name is not None]
    for name in classes:
        if problem := _refusal(name):
            raise ArtifactError(f"{place}: {problem}")
    if not classes:
        raise ArtifactError(
            f"{place}: names no class of scheduler; expected one of a model trained as DDPM, like {_LIKE}"
        )
    if problem := _strange_field(config):
        raise ArtifactError(f"{place}: {problem}")
    own = set().union(*(FAMILY[name] for name in classes))
    known = _TRAINED | _CLIPPING | _THRESHOLDING | own
    if unknown := [key for key in config if key not in known and not key.startswith("_")]:
        log.warning("%s: fields that are not known here, and not used: %s", place, ", ".join(unknown))
    used = {key: value for key, value in config.items() if key in _TRAINED | _CLIPPING | _THRESHOLDING}
    used.setdefault("clip_sample", classes[0] in _CLIPS)
    try:
        return _as_ddim(used)
    except Exception as error:  # of many kinds: diffusers computes with whatever stands there
        raise ArtifactError(f"{place}: no noise schedule can be made of it ({in_one_line(error)})") from error


def without_clipping(schedule: DDIMScheduler) -> DDIMScheduler:
    """The same schedule for samplers that leave the predicted image as it is."""
    return DDIMScheduler.from_config(schedule.config, clip_sample=False, thresholding=False)  # type: ignore[return-value]


def _refusal(name: str) -> str | None:
    """Why a class of scheduler is not of DDPM's family; None if it is."""
    if name in FAMILY:
        return None
    of = next(
        (what for beginning, what in OTHERS.items() if name.startswith(beginning)), "a kind that is not known here"
    )
    return f"{name} is the scheduler of {of}; expected one of a model trained as DDPM, like {_LIKE}"


def _strange_field(config: Mapping[str, Any]) -> str | None:
    """What a scheduler of the family says that makes its model another kind; None if nothing."""
    expected = {
        "prediction_type": KINDS,
        "beta_schedule": _BETAS,
        "timestep_spacing": ("leading", "trailing", "linspace"),
        "timestep_type": ("discrete",),
        "use_flow_sigmas": (False,),
        "predict_epsilon": (True,),
    }
    for key, values in expected.items():
        if key in config and config[key] not in values:
            return f"{key} is {config[key]!r}; known are {', '.join(map(repr, values))}"
    return None


def _as_ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """diffusers' DDIM scheduler; betas written out where not all of diffusers' schedulers can make them."""
    content: Any = dict(config)
    if content.get("beta_schedule") in ("sigmoid", "laplace") or content.get("rescale_betas_zero_snr"):
        source: Any = DDPMScheduler.from_config({key: content[key] for key in content if key != "set_alpha_to_one"})
        content |= {"trained_betas": source.betas.tolist(), "beta_schedule": "linear", "rescale_betas_zero_snr": False}
    schedule: Any = DDIMScheduler.from_config(content)
    betas = schedule.betas
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise ValueError("its betas are not all between 0 and 1")
    if len(betas) != schedule.config.num_train_timesteps:
        raise ValueError(f"{len(betas)} betas for {schedule.config.num_train_timesteps} timesteps")
    return schedule
