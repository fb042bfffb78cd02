"""Tables and pictures in README.md and docs/ are copies of results: `python -m workflow.copies` renews them, `--check`
compares.

A copy of tables stands below `<!-- results/tables/NAME.md -->`, or another such file of results/front or results/paper:
as many of that file's tables, in order, as the text has before its next heading. What stands between them is the text's
own. A picture below `<!-- results/….png -->` is a copy of that one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from quest.artifacts import load_json, write_bytes
from quest.report import paper, published, tables

_COPY = re.compile(r"<!-- (results/(?:tables|front|paper)/\S+)\.md -->\n.*?(?=\n#|\n<!-- results|\Z)", re.DOTALL)
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_PICTURE = re.compile(r"<!-- (results/\S+\.png) -->\n!\[[^]]*\]\((\S+)\)")


def texts(root: Path) -> list[Path]:
    """Where copies may stand."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def renewed(text: str, root: Path) -> str:
    """``text`` with its copies of tables as the results are that are here."""

    def replaced(copy: re.Match[str]) -> str:
        if (source := _markdown(root / copy[1])) is None:
            return copy[0]
        own = iter(_TABLE.findall(source))
        return _TABLE.sub(lambda found: next(own, found[0]), copy[0] + "\n")[:-1]

    return _COPY.sub(replaced, text)


def drifted(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Texts and pictures that are not what the results are, with what they should be."""
    for file in texts(root):
        text = file.read_text(encoding="utf-8")
        if (now := renewed(text, root)) != text:
            yield file, now.encode()
        for source, name in _PICTURE.findall(text):
            copy, original = (file.parent / name).resolve(), root / source
            if original.exists() and (not copy.exists() or copy.read_bytes() != original.read_bytes()):
                yield copy, original.read_bytes()


def main(check: bool) -> None:
    """Renew the copies, or end with 1, naming the files to renew."""
    found = list(drifted(Path.cwd()))
    if check and found:
        names = ", ".join(str(file.relative_to(Path.cwd())) for file, _ in found)
        sys.exit(f"{names}: not as in results/; `python -m workflow.copies` renews them")
    for file, content in found:
        write_bytes(file, content)


def _markdown(source: Path) -> str | None:
    """The tables of a result, made anew where it says what they are made of; None where it is not here."""
    table, text = source.with_name(f"{source.name}.json"), source.with_name(f"{source.name}.md")
    if not table.exists():
        return text.read_text(encoding="utf-8") if text.exists() else None
    if source.parent.parent.name == "paper":
        return paper.to_markdown(load_json(table, "paper").content, published.load())
    return tables.to_markdown(load_json(table, "table").content) + "\n"


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
