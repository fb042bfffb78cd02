"""A row of metrics: what names it, which chain it is of, and where it stands among others."""

from __future__ import annotations

from typing import Any

from quest.config.evaluation import FAKE
from quest.config.methods import METHODS, base_method
from quest.config.methods import title as method_title
from quest.config.values import FULL_PRECISION, Bits

Row = dict[str, Any]

MISSING = "–"


def title(method: str, backend: str = FAKE) -> str:
    """A method's name as its authors write it; for a variant also what it changes, and what multiplied where that is
    not the default: "QuEST (no global loss, integer kernels)"."""
    if method == FULL_PRECISION:
        return "Full precision"
    base, _, change = method.partition("+")
    remarks = [*([change.replace("-", " ")] if change else []), *([] if backend == FAKE else [f"{backend} kernels"])]
    name = method_title(base)
    if not remarks:
        return name
    return f"{name[:-1]}, {', '.join(remarks)})" if name.endswith(")") else f"{name} ({', '.join(remarks)})"


def label(method: str, bits: str, backend: str = FAKE) -> str:
    """A cell as people write it: "QuEST W4A4", "Full precision"."""
    return title(method) if method == FULL_PRECISION else f"{title(method, backend)} {bits.upper()}"


def named(row: Row) -> str:
    """The method of a row as `title` writes it."""
    return title(row["method"], backend(row))


def backend(row: Row) -> str:
    """What multiplied in the networks of a row: rows say it where it is not the default."""
    return row.get("backend", FAKE)


def row_key(row: Row) -> str:
    """A row's name: ``<dataset>/<method>-<bits>-seed<seed>``."""
    return f"{row['dataset']}/{row['method']}-{row['bits']}-seed{row['seed']}"


def order(row: Row) -> tuple[Any, ...]:
    """Sort key of rows: full precision, then from many bits to few; methods as `quest.config` lists them; seeds."""
    bits, method = Bits.parse(row["bits"]), row["method"]
    base = base_method(method)
    place = METHODS.index(base) if base in METHODS else len(METHODS)
    return method != FULL_PRECISION, -bits.weight, -bits.activation, place, method, row.get("seed")


def chain(row: Row) -> int | None:
    """The seed of the chain that a row's quantized model is of; None at full precision."""
    return None if row["method"] == FULL_PRECISION else row.get("chain_seed", row["seed"])
