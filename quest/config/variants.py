"""Methods with some settings changed: `config/variants.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from quest import paths
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS, base_method, python_name
from quest.config.quantizer import OF_WEIGHTS
from quest.config.reading import merged, read, unknown, validate
from quest.config.values import FULL_PRECISION, ConfigError, Settings


class MethodVariant(Settings):
    """A method with some settings changed. It is named ``<method>+<what is changed>`` and stands wherever a method's
    name does. The keys are those of a dataset's protocol, which they override."""

    methods: dict[str, dict[str, Any]] = Field(default={}, description="settings of the method")
    quantizer: dict[str, Any] = Field(default={}, description="what the cell's activation grids change")

    def applied(self, settings: DatasetSettings, source: str) -> DatasetSettings:
        """``settings`` with the overrides. Raises ConfigError that begins with ``source``."""
        given = settings.model_dump(mode="json", exclude_unset=True)
        return validate(DatasetSettings, merged(given, self.model_dump(exclude_unset=True)), source)


def load_variants(folder: Path = paths.CONFIG) -> dict[str, MethodVariant]:
    """Read ``<folder>/variants.yaml``: the variants of methods by name; none where there is no such file.

    Raises ConfigError for a name that is not ``<method>+<what is changed>`` of a known method, or an override of
    another method or of what all cells share through the reconstruction.
    """
    path = folder / "variants.yaml"
    content = (read(path) or {}) if path.exists() else {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected variants by name, each with what it changes")
    variants = {}
    for name, overrides in content.items():
        where = f"{path}: {name}"
        if not re.fullmatch(r"[a-z-]+\+[a-z0-9-]+", str(name)):
            raise ConfigError(f"{where}: a variant is named <method>+<what is changed>, like quest+no-local-loss")
        if (base := base_method(name)) not in METHODS:
            raise ConfigError(f"{where}: {unknown(base, METHODS)}")
        variants[name] = variant = validate(MethodVariant, overrides, where)
        if others := set(variant.methods) - {python_name(base)}:
            raise ConfigError(f"{where}: methods.{min(others)}: a variant of {base} overrides its settings alone")
        if shared := set(variant.quantizer) & set(OF_WEIGHTS):
            raise ConfigError(f"{where}: quantizer.{min(shared)}: weights are reconstructed once for all cells")
    return variants


def of_cell(settings: DatasetSettings, method: str, variants: Mapping[str, MethodVariant]) -> DatasetSettings:
    """A dataset's settings as the cells of ``method`` have them: with the overrides, where it is a variant.

    Raises ConfigError, naming the known methods and variants.
    """
    if method in (FULL_PRECISION, *METHODS):
        return settings
    if method not in variants:
        raise ConfigError(f"method: {unknown(method, [*METHODS, *variants])}")
    return variants[method].applied(settings, f"variants.yaml: {method}")
