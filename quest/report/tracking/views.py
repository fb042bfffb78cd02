"""Saved views of MLflow's page: which runs, columns and charts an address opens on.

MLflow's page restores a view from a tag of the experiment, ``mlflow.sharedViewState.<name>``, as JSON; the keys are
those that the page itself writes there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from quest.report.tracking.store import PICTURES

TAG = "mlflow.sharedViewState."
COLUMNS = ("params.method", "params.bits", "params.dataset", "metrics.fid", "metrics.psnr", "metrics.weight_mib")
_VIEWS_TAG = "quest.view."


class View(NamedTuple):
    """A saved view: its name in the address, and what it shows in words."""

    name: str
    title: str


def tags(names: Iterable[str]) -> dict[str, str]:
    """The tags of a run that is seen in the named views."""
    return {_VIEWS_TAG + name: "shown" for name in names}


def state(view: View) -> str:
    """The value of the experiment's tag."""
    section = _id(view, "section")
    charts: list[dict[str, Any]] = [
        _chart(view, section, "BAR", "fid", metricKey="fid", runsCountToCompare=40),
        _chart(view, section, "BAR", "psnr", metricKey="psnr", runsCountToCompare=40),
        _chart(view, section, "SCATTER", "size", xaxis=_axis("weight_mib"), yaxis=_axis("psnr"), runsCountToCompare=40),
        _chart(view, section, "IMAGE", "images", imageKeys=[PICTURES], runsCountToCompare=40),
    ]
    content = {
        "searchFilter": f"tags.`{_VIEWS_TAG}{view.name}` = 'shown'",
        "orderByKey": "attributes.start_time",  # by any other, seeds would not be nested
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"{kind}.`{name}`" for kind, _, name in (key.partition(".") for key in COLUMNS)],
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": None,
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": section, "name": view.title, "display": True, "isReordered": False, "deleted": False}
        ],
        "isAccordionReordered": True,
    }
    return json.dumps(content, sort_keys=True)


def path(experiment: str, view: View) -> str:
    """The part of the address that opens a view: of MLflow's pages, that of model training."""
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={view.name}"


def _chart(view: View, section: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    common = {"type": kind, "uuid": _id(view, name), "metricSectionId": section, "deleted": False, "isGenerated": False}
    return common | more


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


def _id(view: View, name: str) -> str:
    """The same whenever the view is made."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"quest:{view.name}:{name}").hex
