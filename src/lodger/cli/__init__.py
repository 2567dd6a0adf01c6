"""The command line: one file per command, assembled from one table.

Data goes to stdout, talk and progress to stderr. An error is one line and a hint, with exit code 1; wrong usage exits
with 2, Ctrl-C with 130. Commands import what they need inside their bodies, so that `--help` stays quick.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Annotated

import typer

from lodger import __version__
from lodger.errors import LodgerError

# name -> module; its `run` is the command, its docstring the help, its SETTINGS what the parser should know. A module
# of several commands has them in its GROUP.
COMMANDS: dict[str, str] = {
    "up": "lodger.cli.up",
    "down": "lodger.cli.down",
    "status": "lodger.cli.status",
    "plan": "lodger.cli.plan",
    "pull": "lodger.cli.pull",
    "models": "lodger.cli.models",
    "doctor": "lodger.cli.doctor",
    "verify": "lodger.cli.verify",
    "serve": "lodger.cli.serve",
    "launch": "lodger.cli.launch",
    "list": "lodger.cli.list",
    "sleep": "lodger.cli.sleep",
    "wake": "lodger.cli.wake",
    "terminate": "lodger.cli.terminate",
    "stop": "lodger.cli.stop",
    "logs": "lodger.cli.logs",
    "ragflow": "lodger.cli.ragflow",
    "adopt": "lodger.cli.adopt",
    "compare": "lodger.cli.compare",
}


def main() -> None:
    """Entry point of `lodger` and of `python -m lodger`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # Chinese on a terminal that cannot show it is no error
    try:
        _app()(prog_name="lodger")
    except LodgerError as error:
        from lodger.cli.render import show_error

        show_error(error)
        sys.exit(1)


def _app() -> typer.Typer:
    app = typer.Typer(
        help="Chat, embedding and rerank models out of the memory that other jobs leave free.",
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help and one-line usage errors, and rich is not imported for them
        pretty_exceptions_enable=False,
    )
    app.callback()(_common)
    for name, module_name in COMMANDS.items():
        module = import_module(module_name)
        if group := getattr(module, "GROUP", None):
            app.add_typer(group, name=name)
        else:
            app.command(name, context_settings=getattr(module, "SETTINGS", None))(module.run)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lodger {__version__}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
