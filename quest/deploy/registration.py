"""Packed folders load by diffusers' own ``from_pretrained`` once quest was imported, whichever is imported first.

diffusers has no function to register a quantizer or a pipeline with, and importing it takes seconds. So `import quest`
leaves a note instead: when diffusers imports one of two of its modules, what quest adds to it is added then.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_ADDS = {
    "diffusers.quantizers.auto": "quest.deploy.packed.quantizer",
    "diffusers.pipelines.pipeline_utils": "quest.deploy.packed.pipelines",
}
"""Modules of diffusers, and the module of quest that adds to it, which is imported once it is there."""


class _Then(importlib.abc.Loader):
    """Loads a module as ``loader`` does, and then adds to it."""

    def __init__(self, loader: Any, adds: str):
        self._loader, self._adds = loader, adds

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(self._adds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # what tools ask of a loader: its source, its path


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of diffusers where they are, and has what quest adds run after them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _ADDS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, _ADDS[fullname])
        return spec


def register() -> None:
    """Add to diffusers now where it was imported before, and otherwise when it is. A second call changes nothing."""
    for there, adds in _ADDS.items():
        if there in sys.modules:
            importlib.import_module(adds)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
