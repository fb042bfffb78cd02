"""Files whose content is not what was recorded of them: results by Snakemake's records, objects of DVC by their names.

Artifacts carry a checksum that is looked at whenever one is read. Scores, tables as CSV or Markdown, and pictures have
none inside; theirs stand in the records (`workflow.records`), and every plan compares them. `python -m workflow.damage`
compares everything, and says of a damaged object of the store or the cache which file of which output it is.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from quest.artifacts import ArtifactError
from workflow import records

CACHE = Path(".dvc/cache")
_PLAIN_SUFFIXES = (".csv", ".md", ".png", ".svg")
_PLAIN_FOLDER = "results/scores/"


def refuse(root: Path) -> None:
    """Raise ArtifactError if a result without a checksum of its own is damaged."""
    expected = records.expected(root)
    plain = {name: expected[name] for name in expected if _is_plain(name)}
    if found := list(_damaged(root, plain)):
        more = f" (so are {len(found) - 1} more, which `python -m workflow.damage` names)" if found[1:] else ""
        raise ArtifactError(found[0] + more)


def everything(root: Path) -> Iterator[str]:
    """A sentence for each damaged result, and for each damaged object of DVC's remote, where that is a folder of this
    machine, and of its cache."""
    yield from _damaged(root, records.expected(root))
    if store := _store(root):
        yield from _damaged_objects(root, store, "restore it from git or another clone")
    yield from _damaged_objects(root, root / CACHE, "delete it, and `dvc pull` fetches it again")


def _is_plain(name: str) -> bool:
    return name.startswith(_PLAIN_FOLDER) or name.endswith(_PLAIN_SUFFIXES)


def _damaged(root: Path, expected: dict[str, str]) -> Iterator[str]:
    for name, digest in expected.items():
        found = records.sha256(root / name)
        if found is not None and found != digest:
            yield (
                f"{name}: damaged (sha256 is {found[:12]}…, its record says {digest[:12]}…); delete it, then "
                f"`dvc pull {name}` or `snakemake {name}` restores it"
            )


def _damaged_objects(root: Path, folder: Path, cure: str) -> Iterator[str]:
    for file in sorted(folder.glob("files/md5/??/*")):
        name = file.parent.name + file.name
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "md5").hexdigest()
        if found != name.removesuffix(".dir"):
            what = ", ".join(_outputs(root).get(name, ["of no output of this commit"]))
            shown = file.relative_to(root) if file.is_relative_to(root) else file
            yield f"{shown}: damaged; it is {what}; {cure}"


def _store(root: Path) -> Path | None:
    """The folder of DVC's default remote."""
    config = configparser.ConfigParser()
    config.read(root / ".dvc/config", encoding="utf-8")
    url = config.get(f"'remote \"{config.get('core', 'remote', fallback='')}\"'", "url", fallback="")
    return (root / ".dvc" / url).resolve() if url and "://" not in url else None


def _outputs(root: Path) -> dict[str, list[str]]:
    """The files that each object is, by its name: of folders as a whole, and of all files in those that are whole."""
    found: dict[str, list[str]] = {}
    for output in _tracked(root):
        found.setdefault(output["md5"], []).append(output["path"])
        for entry in _entries(root, output["md5"]):
            found.setdefault(entry["md5"], []).append(f"{output['path']}/{entry['relpath']}")
    return found


def _tracked(root: Path) -> Iterator[dict[str, Any]]:
    """What dvc.lock and *.dvc files say of each output, its path from ``root``."""
    if (root / "dvc.lock").exists():
        stages = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        yield from (output for stage in stages.values() for output in stage.get("outs", []))
    for file in sorted((*root.glob("data/*.dvc"), *root.glob("results/*.dvc"))):
        for output in yaml.safe_load(file.read_text(encoding="utf-8"))["outs"]:
            yield output | {"path": (file.parent / output["path"]).relative_to(root).as_posix()}


def _entries(root: Path, name: str) -> list[dict[str, str]]:
    """The files of a folder, as the first whole object of it says."""
    for folder in (_store(root), root / CACHE):
        file = folder and folder / "files/md5" / name[:2] / name[2:]
        if not (name.endswith(".dir") and file and file.exists()):
            continue
        content = file.read_bytes()
        if hashlib.md5(content).hexdigest() == name.removesuffix(".dir"):
            return json.loads(content)
    return []


if __name__ == "__main__":
    sentences = list(everything(Path.cwd()))
    print(*(sentences or ["every file is as it was recorded"]), sep="\n")
    sys.exit(bool(sentences))
