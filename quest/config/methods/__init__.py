"""Settings and title of each method, a file each: a new file here is a new method."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from pydantic import create_model

from quest.config.method import MethodSettings
from quest.config.values import Settings


def _discovered() -> dict[str, type[MethodSettings]]:
    """The settings class of each file here, by the file's name."""
    found = {}
    for file in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{file.name}")
        (found[file.name],) = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, MethodSettings) and value.__module__ == module.__name__
        ]
    return found


_BY_FILE = _discovered()
_FIELDS: dict[str, Any] = {name: (settings, settings()) for name, settings in _BY_FILE.items()}
MethodsSettings: type[Settings] = create_model(
    "MethodsSettings", __base__=Settings, __doc__="Settings of each method; the defaults are the papers'.", **_FIELDS
)

METHODS: tuple[str, ...] = tuple(name.replace("_", "-") for name in _BY_FILE)
"""The names that people use, like ``q-diffusion``."""


def base_method(name: str) -> str:
    """The method of a variant; a method itself is its own."""
    return name.partition("+")[0]


def python_name(method: str) -> str:
    """A method, or a variant's, as its files and its section of the configuration are named, like ``q_diffusion``."""
    return base_method(method).replace("-", "_")


def title(method: str) -> str:
    """The name of a method in tables; of an unknown one, its own name."""
    settings = _BY_FILE.get(python_name(method))
    return method if settings is None else settings.title
