"""`lodger doctor`: what could go wrong on this machine, before anything is started."""

from __future__ import annotations

import typer

from lodger.cli.options import File, HomeDir, Host, Json, Port
from lodger.cli.wanted import DEFAULT_FILE, Flags, wanted


def run(file: File = None, host: Host = None, port: Port = None, home: HomeDir = None, json: Json = False) -> None:
    """Check this machine and lodger.yaml before serving.

    Exit code 1 when something that is asked for cannot work.
    """
    from lodger.checks.environment import doctor
    from lodger.cli.render import say, show_json, show_table

    file = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    what = wanted(Flags(file=file, host=host, port=port, home=home), needs_models=False)
    checks = doctor(what.home, what.specs, host=what.host, port=what.port)
    if json:
        show_json(checks)
    else:
        show_table(("", "CHECK", "MEASURED"), [(check.state, check.name, check.measured) for check in checks])
        for check in checks:
            if check.hint:
                say(f"{check.name}: expected {check.expected}. {check.hint}")
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)
