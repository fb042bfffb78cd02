"""Methods are found by name."""

from __future__ import annotations

import pytest

from quest import methods
from quest.config.dataset import DatasetSettings
from quest.config.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_configuration_is_there(name: str, settings: DatasetSettings) -> None:
    module = methods.get(name)
    assert module.__name__ == f"quest.methods.{name.replace('-', '_')}"
    assert callable(module.quantize)
    assert settings.method(name)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match=r"--method: unknown 'quset' \(did you mean 'quest'\?\); known are "):
        methods.get("quset")
