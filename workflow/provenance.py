"""What code a result was made by: a hash of the library modules that a stage imports.

Snakemake sees no code behind a `shell:` command, so rules pass this hash as a parameter. It follows imports inside
the library and ignores comments, blank lines and docstrings: editing those reruns nothing. It is the same under every
Python version, since it travels with the results.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path

PACKAGE = "quest"
# Settings reach a stage as its parameters, and paths as its files: an edit of these modules alone changes no result.
UNRELATED = {"quest.cli", "quest.config", "quest.config.reference", "quest.paths"}


def code_hash(root: Path, *modules: str) -> str:
    """Hash of ``modules`` (like "quest.learning.calibration") and of all library modules they import, directly or not.

    root: the folder that holds the package. Raises FileNotFoundError for a module that is not there.
    """
    digest = hashlib.sha256()
    for name, file in sorted(closure(root, *modules).items()):
        digest.update(f"{name}\n{code_only(file.read_text())}\n".encode())
    return digest.hexdigest()[:16]


def closure(root: Path, *modules: str) -> dict[str, Path]:
    """Name to file of ``modules`` and of all library modules that they import, inside functions too."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    for name in modules:
        if _file(root, name) is None:
            raise FileNotFoundError(f"{name}: no such module in {root / PACKAGE}, though a rule names it as its code")
    while waiting:
        name = waiting.pop()
        file = _file(root, name)
        if file is not None and name not in found and name not in UNRELATED:
            found[name] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(file.read_text(), package)
            waiting.append(name.rpartition(".")[0])  # importing a module runs its package first
    return found


@functools.cache
def code_only(source: str) -> str:
    """``source`` without comments, blank lines and docstrings."""
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    lines = source.splitlines()
    droppable = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        (first, start), (last, end) = token.start, token.end
        if token.type == tokenize.NL:
            droppable.add(first)
        elif token.type == tokenize.COMMENT:
            lines[first - 1] = lines[first - 1][:start].rstrip()
        elif token.type == tokenize.STRING and token.start in docstrings:
            droppable.update(range(first, last + 1))
            rest = lines[last - 1][end:]
            lines[first - 1] = lines[first - 1][:start].rstrip()
            lines[first:last] = [""] * (last - first)
            lines[last - 1] += rest
    return "\n".join(line for number, line in enumerate(lines, 1) if line.strip() or number not in droppable)


def _file(root: Path, name: str) -> Path | None:
    base = "/".join(name.split("."))
    return next((root / file for file in (f"{base}.py", f"{base}/__init__.py") if (root / file).is_file()), None)


@functools.cache
def _imports(source: str, package: str) -> tuple[str, ...]:
    """What ``source``, a module of ``package``, imports from the library: modules, and names that may be modules."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.split(".")[0] == PACKAGE)
