"""The command line: `quest <stage>` for each stage of the pipeline, and commands for results, benchmarks and tools.

A command is looked up by name and imported when it runs, so that `quest --help`, tables and tracking start at once.
"""

from __future__ import annotations

import ast
import importlib
import logging
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import click

from quest import paths, stages
from quest.artifacts import ArtifactError
from quest.cli import ending, extras
from quest.cli.announcing import Announcer, announced
from quest.config.values import NAME, ConfigError

# Commands that are no stages, by the module of this package that has them.
_OTHERS = {
    "quantize": "quantize",
    "inspect": "inspect",
    "estimate": "estimate",
    "export": "deploy",
    "compare": "results",
    "ui": "results",
    "show": "show",
    "times": "show",
    "spread": "spread",
    "tune": "tools",
    "prompts": "tools",
    "config": "tools",
    "shapes": "tools",
    "testkit": "bench",
    "bench": "bench",
}
# The same names with a folder or a file of images instead of a dataset's name first: commands of their own.
_OF_IMAGES = {"reference": "images", "measure": "images"}


class _Commands(click.Group):
    """Finds commands by name, and turns the errors that a user can mend into one clear message and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_stages(), *_OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        announcer = ctx.obj or Announcer()
        if cmd_name in _stages():
            return announcer.telling(stages.command(cmd_name))
        if cmd_name in _OTHERS:
            return announcer.telling(_imported(_OTHERS, cmd_name))
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does, but without importing a single command."""
        for heading, rows in (
            ("Stages of the pipeline", [(name, _help_of_stage(name)) for name in _stages()]),
            ("Images of your own", [(f"{name} DIR", _help_of(_OF_IMAGES, name)) for name in _OF_IMAGES]),
            ("Other commands", [(name, _help_of(_OTHERS, name)) for name in _OTHERS]),
        ):
            with formatter.section(heading):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        ctx.invoked_subcommand = args[0]  # as click does, but before the command is imported, which may fail
        name, *rest = args
        ctx.obj.command = name
        if name in _OF_IMAGES and not _of_a_dataset(rest):
            return name, ctx.obj.telling(_imported(_OF_IMAGES, name)), rest
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params["quiet"]:
            os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which a command may do
        try:
            # From before a command is looked up, for importing it takes seconds.
            with ending.heeded(), announced(quiet=ctx.params["quiet"]) as ctx.obj:
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            missing = extras.sentence(str(ctx.invoked_subcommand), error)
            if missing is None or ctx.params["debug"]:
                raise
            raise click.ClickException(missing) from error
        except (ArtifactError, ConfigError, ValueError) as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        except RuntimeError as error:
            if ctx.params["debug"] or not _out_of_memory(error):
                raise
            raise click.ClickException(
                f"{str(error).partition('. ')[0]}, where the size of a batch is no setting; free the device of other "
                "processes, or take another by --device"
            ) from error
        except KeyboardInterrupt as interrupt:
            how = "ended" if isinstance(interrupt, ending.Terminated) else "interrupted"
            click.echo(f"{how}; nothing half-written is left, run the same command to go on", err=True)
            sys.exit(ending.exit_code(interrupt))


@click.group(cls=_Commands)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors: for scripts.")
@click.version_option(package_name="quest-diffusion")
def main(debug: bool, quiet: bool) -> None:
    """Low-bit diffusion models by efficient selective finetuning (QuEST)."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for name in ("matplotlib", "PIL", "alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left; only torch says so, which a command may not have needed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _stages() -> list[str]:
    return [file.name.replace("_", "-") for file in pkgutil.iter_modules(stages.__path__)]


def _help_of_stage(name: str) -> str:
    """The first line of a stage's docstring."""
    source = Path(stages.__path__[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _help_of(modules: dict[str, str], name: str) -> str:
    """The first line of the docstring of another command's function."""
    tree = ast.parse(Path(__path__[0], f"{modules[name]}.py").read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    return (ast.get_docstring(function) or "").partition("\n")[0]


def _imported(modules: dict[str, str], name: str) -> click.Command:
    return getattr(importlib.import_module(f"quest.cli.{modules[name]}"), name)


def _of_a_dataset(arguments: list[str]) -> bool:
    """Whether a stage is meant, which is told its protocol, or a dataset's name before anything else."""
    first = arguments[0] if arguments else ""
    known = re.fullmatch(NAME, first) and (paths.CONFIG / "datasets" / f"{first}.yaml").is_file()
    return bool(known) or any(each.partition("=")[0] == "--settings" for each in arguments)
