"""Tables in README.md and docs/ are copies of results: `python -m workflow.copies` renews them, `--check` compares.

A copy stands below `<!-- results/tables/NAME.md -->`: as many of that file's tables, in order, as the text has before
its next heading. What stands between them is the text's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from quest.artifacts import load_json, write_bytes
from quest.report import tables

_COPY = re.compile(r"<!-- (results/tables/\S+)\.md -->\n.*?(?=\n#|\n<!-- results|\Z)", re.DOTALL)
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def texts(root: Path) -> list[Path]:
    """Where copies may stand."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def renewed(text: str, root: Path) -> str:
    """``text`` with its copies as the results are that are here."""

    def replaced(copy: re.Match[str]) -> str:
        source = root / f"{copy[1]}.json"
        if not source.exists():
            return copy[0]
        content = load_json(source, "table").content
        own = iter(_TABLE.findall(tables.to_markdown(content) + "\n"))
        return _TABLE.sub(lambda found: next(own, found[0]), copy[0] + "\n")[:-1]

    return _COPY.sub(replaced, text)


def drifted(root: Path) -> Iterator[tuple[Path, str]]:
    """Texts whose copies are not what the results are, with what they should be."""
    for file in texts(root):
        text = file.read_text(encoding="utf-8")
        if (now := renewed(text, root)) != text:
            yield file, now


def main(check: bool) -> None:
    """Renew the copies, or end with 1, naming the texts to renew."""
    found = list(drifted(Path.cwd()))
    if check and found:
        names = ", ".join(str(file.relative_to(Path.cwd())) for file, _ in found)
        sys.exit(f"{names}: tables are not those of results/; `python -m workflow.copies` renews them")
    for file, text in found:
        write_bytes(file, text.encode())


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
