"""Whether methods may share the columns of a table: a policy decides a row as much as its method does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from quest.config.method import PolicyName
from quest.config.methods import base_method


def said(method: str) -> str | None:
    """The policy that the name of a variant says: quest+everything, quest+paper; None where it says none."""
    change = method.removeprefix(base_method(method)).replace("-", "_")
    return next((policy for policy in get_args(PolicyName) if policy in change), None)


def clash(policies: Mapping[str, str]) -> tuple[str, str] | None:
    """Two methods under different policies that their names do not say; None where there are none.

    policies: of methods and variants, by name.
    """
    silent = [method for method in policies if said(method) is None]
    others = (method for method in silent if policies[method] != policies[silent[0]])
    return next(((silent[0], other) for other in others), None)
