"""What code a result was made by: a hash of the library modules that a stage imports.

Snakemake sees no code behind a `shell:` command, so rules pass this hash as a parameter. It follows imports inside
the library and ignores comments, blank lines and docstrings: editing those reruns nothing. Of the configuration it
leaves out the keys and their defaults too, whose values reach a stage as its settings; what computes there counts like
any other code. It is the same under every Python version, since it travels with the results.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path

PACKAGE = "quest"
CONFIG = f"{PACKAGE}.config."
# Packages that import their files when they run: what is found there may be reached.
FOUND_AT_RUN_TIME = {f"{PACKAGE}.architectures", f"{PACKAGE}.deploy.kernels"}


def code_hash(root: Path, *modules: str) -> str:
    """Hash of ``modules`` (like "quest.learning.calibration") and of all library modules they import, directly or not.

    root: the folder that holds the package. Raises FileNotFoundError for a module that is not there.
    """
    digest = hashlib.sha256()
    for name, file in sorted(closure(root, *modules).items()):
        code = code_only(file.read_text(encoding="utf-8"), declarations=not name.startswith(CONFIG))
        digest.update(f"{name}\n{code}\n".encode())
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
        # The package itself only offers its face (quest.quantize, …), which no stage goes through.
        if file is not None and name not in found and name != PACKAGE:
            found[name] = file
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(file.read_text(encoding="utf-8"), package)
            waiting.append(name.rpartition(".")[0])  # importing a module runs its package first
            if name in FOUND_AT_RUN_TIME:
                waiting += [f"{name}.{sibling.stem}" for sibling in file.parent.glob("*.py") if sibling != file]
    return found


def sections_of(root: Path, stage: str) -> tuple[str, ...]:
    """The settings that a stage says it depends on, its ``SECTIONS``, read without importing it.

    Raises ValueError for a stage that says nothing.
    """
    file = root / PACKAGE / "stages" / f"{stage}.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["SECTIONS"]:
            return ast.literal_eval(node.value)
    raise ValueError(f"{file}: no SECTIONS, though its rule passes settings")


@functools.cache
def code_only(source: str, declarations: bool = True) -> str:
    """``source`` without comments, blank lines and docstrings; and, unless asked for, without ``declarations``: the
    annotated names of classes, with what they are set to."""
    if not declarations:
        source = _without_declarations(source)
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


def _without_declarations(source: str) -> str:
    lines = source.splitlines()
    for owner in ast.walk(ast.parse(source)):
        for node in owner.body if isinstance(owner, ast.ClassDef) else []:
            if isinstance(node, ast.AnnAssign):
                lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
        if isinstance(owner, ast.ClassDef) and all(isinstance(node, ast.AnnAssign) for node in owner.body):
            lines[owner.body[0].lineno - 1] = " " * owner.body[0].col_offset + "pass"
    return "\n".join(lines)


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
