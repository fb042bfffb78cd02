"""The page in a real browser: it loads without errors, and its controls do what they say."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from show_files import write_cell

from quest.report.show import images, page
from quest.report.show.results import groups

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (on Debian: apt-get install chromium)")

# Before the page's own script: errors are kept. After it: `steps` run, and what they return stands in an attribute.
ERRORS = """<script>
window.faults = [];
for (const kind of ["error", "unhandledrejection"]) {
  addEventListener(kind, (event) => faults.push(String(event.reason ?? event.message)));
}
</script>"""
STEPS = """<script>
const shown = () => document.documentElement.dataset.shown;
async function until(condition) {  // the browser's time leaps from timer to timer, while images are decoded in ours
  for (let tries = 0; tries < 10000 && !condition(); tries++) await new Promise((go) => setTimeout(go, 20));
  if (!condition()) faults.push("never: " + condition);
}
function choose(id, value) {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event(control.type === "range" ? "input" : "change"));
}
function rows() {
  return [...document.querySelectorAll("#grid tr[data-cell]")].map((row) => {
    const canvas = row.querySelector("canvas");
    return {
      cell: row.dataset.cell,
      text: row.innerText,
      left: canvas && [...canvas.getContext("2d").getImageData(2, 2, 1, 1).data].slice(0, 3),
      width: canvas && canvas.width,
    };
  });
}
(async () => {
  const found = {};
  try {
    await until(shown);
    %s
  } catch (error) {
    faults.push(String(error));
  }
  document.documentElement.dataset.outcome = JSON.stringify({ ...found, faults });
})();
</script>"""


def outcome(text: str, steps: str, folder: Path) -> dict[str, Any]:
    """What ``steps`` put into `found` in a headless browser that opened the page, and the errors that it met."""
    file = folder / "page.html"
    hooked = text.replace("<style>", ERRORS + "<style>", 1).replace("</body>", STEPS % steps + "</body>", 1)
    file.write_text(hooked, encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900", f"--user-data-dir={folder}/user")
    command = [str(BROWSER), *flags, "--virtual-time-budget=1000000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-outcome="(.*?)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_the_page_loads_and_its_slider_moves(results: Path, tmp_path: Path):
    steps = """
      found.before = rows();
      choose("first", 5);
      await until(() => shown().endsWith(" 5"));
      found.after = rows();
      found.range = document.getElementById("range").textContent;
    """
    found = outcome(page.html(groups((), results)), steps, tmp_path)
    assert found["faults"] == []
    before, after = ({row["cell"]: row for row in found[when]} for when in ("before", "after"))
    assert next(iter(before)) == "fp-w32a32", "full precision stands on top"
    assert "quest+tla-only-w4a4" not in before, "variants are there to be chosen"
    assert before["nearest-w4a4"]["left"] == [10, 10, 10]
    assert after["nearest-w4a4"]["left"] == [15, 15, 15]
    assert found["range"].startswith("5–")
    assert "FID 40.50\xa0±\xa00.71" in before["quest-w4a4"]["text"]


def test_dataset_zoom_difference_and_seed(results: Path, tmp_path: Path):
    steps = """
      choose("difference", true);
      choose("dataset", 1);
      await until(() => shown().startsWith("shapes-text"));
      found.text = rows();
      found.words = [...document.querySelectorAll("#grid thead .line")][0].innerText;
      found.tables = [...document.querySelectorAll(".numbers")].map((section) => section.hidden);
      choose("zoom", 8);
      await until(() => rows().every((row) => row.width % 132 === 128));
      found.zoomed = rows();
      choose("dataset", 0);
      await until(() => shown().startsWith("digits"));
      choose("seed", 1);
      await until(() => shown() === "digits 1 0");
      found.second = rows();
    """
    found = outcome(page.html(groups((), results)), steps, tmp_path)
    assert found["faults"] == []
    full, quest = found["text"]
    assert (full["left"], quest["left"]) == ([0, 0, 0], [138, 138, 138]), "a difference stands around grey"
    assert "28.1" in quest["text"], "10 levels of 255 everywhere"
    assert "a <b>small</b> circle</script>" in found["words"]
    assert found["tables"] == [True, False]
    assert len(found["zoomed"]) == 2
    assert all("no images of seed 1 here" in row["text"] for row in found["second"])


def test_a_choice_while_images_are_still_drawn(results: Path, tmp_path: Path):
    """As the keys of the list of datasets make it: one after another, faster than images are decoded."""
    write_cell(results, "quest", "w4a4", dataset="shapes")  # without images
    steps = """
      choose("seed", 0);
      const names = [...document.getElementById("dataset").options].map((each) => each.text);
      choose("dataset", names.findIndex((name) => name.includes("latent space, uncond")));
      await until(() => shown().startsWith("shapes "));
      await new Promise((go) => setTimeout(go, 500));
      found.absent = document.getElementById("absent").innerText;
      found.cells = rows().map((row) => row.cell);
    """
    found = outcome(page.html(groups((), results)), steps, tmp_path)
    assert found["faults"] == []
    assert found["absent"].startswith("The images of shapes are not here")
    assert found["cells"] == ["quest-w4a4"]


def test_compressed_images_are_shown(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sprite = images.sprite
    monkeypatch.setattr(images, "sprite", lambda pixels, exact: sprite(pixels, exact=False))
    found = outcome(page.html(groups((), results)), "found.rows = rows();", tmp_path)
    assert found["faults"] == []
    left = {row["cell"]: row["left"] for row in found["rows"]}
    assert left["nearest-w4a4"] == pytest.approx([10, 10, 10], abs=3)


def test_cells_are_chosen_and_their_settings_compared(results: Path, tmp_path: Path):
    steps = """
      document.querySelector('[data-choose="none"]').click();
      await until(() => rows().length === 1);
      const labels = [...document.querySelectorAll("#cells label")];
      const box = labels.find((label) => label.textContent.includes("tla only"));
      box.querySelector("input").click();
      await until(() => rows().length === 2);
      found.chosen = rows().map((row) => row.cell);
      const numbers = document.querySelectorAll(".numbers:not([hidden]) tbody tr:not([hidden])");
      found.numbers = [...numbers].map((row) => row.dataset.cell);
      found.alone = document.getElementById("settings").hidden;
      document.querySelector('[data-choose="methods"]').click();
      await until(() => rows().length === 5);
      found.settings = document.getElementById("settings").innerText;
    """
    found = outcome(page.html(groups((), results)), steps, tmp_path)
    assert found["faults"] == []
    assert found["chosen"] == found["numbers"] == ["fp-w32a32", "quest+tla-only-w4a4"]
    assert found["alone"] is True
    assert "methods.quest.sets" in found["settings"]


def test_a_dataset_without_images_says_what_to_pull(results: Path, tmp_path: Path):
    for file in (results / "results/previews").rglob("*.safetensors"):
        file.unlink()
    steps = """
      found.absent = document.getElementById("absent").innerText;
      found.pictures = document.getElementById("pictures").hidden;
      found.numbers = document.querySelector(".numbers:not([hidden])").innerText;
    """
    found = outcome(page.html(groups((), results)), steps, tmp_path)
    assert found["faults"] == []
    assert 'The images of digits are not here. "dvc pull results/previews" brings' in found["absent"]
    assert found["pictures"] is True
    assert "40.50\xa0±\xa00.71" in found["numbers"]
