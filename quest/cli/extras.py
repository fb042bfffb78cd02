"""What a command needs and is not installed: its name, and the extra that brings it (pyproject.toml)."""

from __future__ import annotations

import importlib.metadata
import re

_PROJECT = "quest-diffusion"
_PROJECTS = {"sklearn": "scikit-learn"}  # of modules that are named otherwise


def sentence(command: str, error: ModuleNotFoundError) -> str | None:
    """Says what ``command`` needs and how to get it; None where ``error`` is of a module that no extra brings."""
    module = (error.name or "").partition(".")[0]
    package = _PROJECTS.get(module, module)
    extra = _extra(package)
    return extra and f"quest {command}: needs {package}, which `pip install '{_PROJECT}[{extra}]'` brings"


def _extra(package: str) -> str | None:
    """The extra of this project that ``package`` is of."""
    for requirement in importlib.metadata.requires(_PROJECT) or []:
        name, marker = re.match(r"[\w.-]*", requirement), re.search(r"extra == ['\"](.+?)['\"]", requirement)
        if name and marker and name[0] == package:
            return marker[1]
    return None
