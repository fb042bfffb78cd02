"""What a table says of its learned rounding: whether longer runs, which the study `convergence` makes, change it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quest import methods
from quest.artifacts import JsonArtifact
from quest.config.method import Rounding
from quest.config.methods import MethodsSettings, python_name
from quest.config.values import FULL_PRECISION, Bits, ConfigError
from quest.report.rows import Row, label

TIMES, TOLERANCE = "five times", 0.05
"""How much longer the study learns, and by what share of its loss a unit that has converged may change."""
KEY = "convergence"
MARK = "†"


def record(file: Path, rounding: Rounding) -> dict[str, Any]:
    """The CSV of the study in short: grouping and policy of the units that it learned, weight_bits, iterations, how
    many units there are and how many changed, and the unit that changed most, with its change.

    rounding: what the study learned. Raises ConfigError for a file that is not the study's.
    """
    try:
        with file.open(encoding="utf-8", newline="") as text:
            rows = list(csv.DictReader(text))
        changes = {row["unit"]: float(row["change"]) for row in rows}
        unit = max(changes, key=lambda name: abs(changes[name]))
        return {
            **rounding._asdict(),
            "weight_bits": int(rows[0]["weight_bits"]),
            "iterations": int(rows[0]["iterations"]),
            "units": len(rows),
            "changed": sum(row["converged"] != "True" for row in rows),
            "unit": unit,
            "change": changes[unit],
        }
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{file}: not as the study convergence writes it ({error!r}); remove it, or make it again"
        ) from None


def learned(artifact: JsonArtifact) -> Rounding | None:
    """The learned rounding that a cell started from; None also where its metrics do not say."""
    method, settings = artifact.content["method"], artifact.manifest.settings.get("method")
    if method == FULL_PRECISION or settings is None:
        return None
    section: Any = MethodsSettings.model_fields[python_name(method)].annotation
    return methods.starts_from(method, section.model_validate(settings))


def of_cells(artifacts: Iterable[JsonArtifact], known: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What the rows of cells say beside their numbers, by ``<method>-<bits>``: `KEY`, with ``known``, a `record`, where
    that is of the cell's rounding, else None; nothing where the cell's rounding is not learned."""
    found = {}
    for artifact in artifacts:
        rounding, row = learned(artifact), artifact.content
        own = rounding and {**rounding._asdict(), "weight_bits": Bits.parse(row["bits"]).weight}
        said = known if known and own and all(known[key] == value for key, value in own.items()) else None
        found[f"{row['method']}-{row['bits']}"] = {KEY: said} if own else {}
    return found


def mark(row: Row) -> list[str]:
    """The mark of a summary row whose learned rounding has not converged."""
    return [MARK] if (row.get(KEY) or {}).get("changed") else []


def notes(summary: Sequence[Row]) -> list[str]:
    """What the marks mean, or that nothing is marked because nothing was found, or because nothing is on record."""
    rows = [row for row in summary if KEY in row]
    if not rows:
        return []
    found = next((row[KEY] for row in rows if row[KEY]), None)
    if found is None:
        return [
            f"Whether learned rounding has converged is not on record: nothing was learned with {TIMES} the iterations."
        ]
    longer = f"{TIMES} the {found['iterations']:,} iterations"
    units = f"of {found['units']} units of {found['weight_bits']}-bit weights"
    if found["changed"]:
        said = (
            f"{MARK} Learned rounding has not converged: with {longer} the loss of {found['changed']} {units} changes "
            f"by more than {TOLERANCE:.0%}, most that of {found['unit']} ({found['change']:+.0%})."
        )
    else:
        said = f"Learned rounding has converged: {longer} change the loss of none {units} by more than {TOLERANCE:.0%}."
    others = [row for row in rows if row[KEY] is None]
    return [said + (f" Not on record for {_some(others, rows)}." if others else "")]


def _some(others: Iterable[Row], rows: Sequence[Row]) -> str:
    """Cells in short: a bit-width where it is all of its."""
    names: dict[str, None] = {}
    for row in others:
        whole = all(other[KEY] is None for other in rows if other["bits"] == row["bits"])
        names[row["bits"].upper() if whole else label(row["method"], row["bits"])] = None
    return ", ".join(names)
