"""`lodger serve`: gateway and supervisor in the foreground, for a terminal, systemd or a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lodger.cli.options import Demo, Engine, HomeDir, Host, KeyToAsk, Open, Port, Reserve

File = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="Models to launch at the start.")]


def run(
    file: File = None,
    demo: Demo = False,
    engine: Engine = None,
    host: Host = None,
    port: Port = None,
    api_key: KeyToAsk = None,
    open: Open = False,
    reserve: Reserve = None,
    home: HomeDir = None,
) -> None:
    """Serve in the foreground, as `xinference-local` does.

    Without a file it starts without models; `lodger launch` adds them.
    """
    from lodger.cli.wanted import Flags, wanted
    from lodger.server import run_server

    flags = Flags(
        home=home,
        file=file,
        demo=demo,
        engine=engine,
        host=host,
        port=port,
        api_key=api_key,
        open=open,
        reserve=reserve,
    )
    run_server(wanted(flags, needs_models=False).options())
