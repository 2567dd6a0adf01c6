"""`lodger up`: plan, start the server, wait until the models are ready, ask each of them something."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from lodger.cli.options import Demo, Engine, File, FromHub, HomeDir, Host, KeyToAsk, Open, Port, Reserve, home_of
from lodger.cli.wanted import Flags, Wanted, wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lodger.client import Client, ServerRecord
    from lodger.service import ModelStatus

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Serve in the background; return when all is checked.")]


def run(
    detach: Detach = False,
    file: File = None,
    demo: Demo = False,
    engine: Engine = None,
    host: Host = None,
    port: Port = None,
    api_key: KeyToAsk = None,
    open: Open = False,
    reserve: Reserve = None,
    hub: FromHub = None,
    home: HomeDir = None,
) -> None:
    """Serve what lodger.yaml asks for, and check it.

    Fetches what is missing and shows the plan first. Where a server of this home runs already, only models that it has
    not are launched.
    """
    from lodger.cli.render import say
    from lodger.client import Client, running_server

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
        hub=hub,
    )
    what = wanted(flags)
    record = running_server(what.home)
    if record is None and not detach:
        _foreground(what)
        return
    launched = [spec.uid for spec in what.specs]
    if record is None:
        record = _detached(what, flags)
    else:
        launched = _launch_missing(Client(record.address, api_key=record.api_key), what)
    try:
        good = _check(Client(record.address, api_key=record.api_key), what, launched)
    except KeyboardInterrupt:
        say(f"\nThe server goes on in the background at {record.address}; `lodger down` stops it.")
        raise
    if not good:
        raise typer.Exit(1)


def _foreground(what: Wanted) -> None:
    from lodger.cli.render import say, show_error
    from lodger.client import Client
    from lodger.errors import LodgerError
    from lodger.server import run_server

    def check(record: ServerRecord) -> None:
        try:
            _check(Client(record.address, api_key=record.api_key), what, [spec.uid for spec in what.specs])
        except LodgerError as error:
            show_error(error)
        say("Serving until Ctrl-C.")

    def started(record: ServerRecord) -> None:
        threading.Thread(target=check, args=(record,), daemon=True).start()

    run_server(_planned(what).options(), started=started)


def _detached(what: Wanted, flags: Flags) -> ServerRecord:
    from lodger.cli.background import start_server
    from lodger.cli.render import say

    _planned(what)
    say()
    return start_server(what.home, flags.words(), api_key=what.api_key)


def _planned(what: Wanted) -> Wanted:
    """The same with every model fetched and ready to be loaded, its plan shown."""
    from lodger.cli.fetching import prepared
    from lodger.cli.plan import local_plans, show_plans
    from lodger.server import bind, check_exposure

    # What the server itself would refuse later, said before anything is fetched.
    check_exposure(what.host, what.api_key, open=what.open)
    bind(what.host, what.port).close()
    what = prepared(what)
    show_plans(local_plans(what))
    return what


def _launch_missing(client: Client, what: Wanted) -> list[str]:
    """What failed before is tried again; what is there stays as it is, and is named. The uids to wait for."""
    from lodger.cli.fetching import prepared
    from lodger.cli.plan import show_plans
    from lodger.cli.render import say

    say(f"A server runs already at {client.base_url}.")
    there = {model.uid: model for model in client.models() if model.state != "failed"}
    missing = []
    for spec in prepared(what).specs:
        model = there.get(spec.uid)
        if model is None:
            missing.append(spec)
        elif replace(model.spec, notes=()) == replace(spec, notes=()):
            say(f"{spec.uid} is there already ({model.state}).")
        else:
            say(f"{spec.uid} is there with other settings. To change it: `lodger stop {spec.uid}`, then `lodger up`.")
    if missing:
        show_plans(client.plan(tuple(missing)))
    for spec in missing:
        client.launch(spec)
    return [spec.uid for spec in missing] + [uid for uid, model in there.items() if not model.serves]


def _check(client: Client, what: Wanted, launched: list[str]) -> bool:
    """Wait for those that were launched, ask all, and say how to go on. Whether all is well."""
    from lodger.checks.endpoints import verify
    from lodger.cli.progress import wait_settled
    from lodger.cli.render import plural, say
    from lodger.cli.verify import show_answers

    wait_settled(client, launched)
    wanted_uids = {spec.uid for spec in what.specs}
    models = [model for model in client.models() if model.uid in wanted_uids]
    say()
    good = show_answers(verify(client, models))
    ready = [model for model in models if model.serves]
    print(f"\nLodger serves {plural(len(ready), 'model')} at {client.base_url}.{' Try:' if ready else ''}\n")
    for line in curls(client.base_url, ready, key=client.api_key is not None):
        print(f"  {line}\n")
    home = "" if what.home == home_of(None) else f" --home {what.home.root}"
    print(f"Stop it with: lodger down{home}", flush=True)
    return good


def curls(address: str, models: Iterable[ModelStatus], *, key: bool) -> list[str]:
    """One line to try for each kind of model."""
    from lodger.checks.endpoints import ENGLISH as ASK

    bodies: dict[str, tuple[str, dict[str, object]]] = {
        "chat": ("chat/completions", {"messages": [{"role": "user", "content": ASK.chat}]}),
        "embedding": ("embeddings", {"input": ASK.text}),
        "rerank": ("rerank", {"query": ASK.query, "documents": list(ASK.documents)}),
    }
    headers = "-H 'Content-Type: application/json'" + ' -H "Authorization: Bearer $LODGER_API_KEY"' * key
    lines = {}
    for model in models:
        kind = model.facts.kind if model.facts else model.spec.kind
        if kind is not None and kind not in lines:
            path, body = bodies[kind]
            data = json.dumps({"model": model.uid, **body}, ensure_ascii=False)
            lines[kind] = f"curl {address}/v1/{path} {headers} -d '{data}'"
    return list(lines.values())
