"""Whether methods may share the columns of a table: a policy decides a row as much as its method does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from quest.config.method import PolicyName
from quest.config.methods import base_method


def says(method: str) -> bool:
    """Whether the name of a variant says its policy, as quest+everything and quest+paper do."""
    change = method.removeprefix(base_method(method))
    return any(policy.replace("_", "-") in change for policy in get_args(PolicyName))


def clash(policies: Mapping[str, str]) -> tuple[str, str] | None:
    """Two methods under different policies that their names do not say; None where there are none.

    policies: of methods and variants, by name.
    """
    silent = [method for method in policies if not says(method)]
    others = (method for method in silent if policies[method] != policies[silent[0]])
    return next(((silent[0], other) for other in others), None)
