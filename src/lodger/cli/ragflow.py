"""`lodger ragflow`: what RAGFlow needs to use the models of this server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, Json, connect, home_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lodger.checks.base import Check
    from lodger.client import Client
    from lodger.ragflow.api import Ragflow
    from lodger.ragflow.connect import Offer, Registration

GROUP = typer.Typer(
    help="Connect RAGFlow with this server, and check what it gets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
HERE = "host.docker.internal"  # this machine as a container of RAGFlow's compose files knows it

Url = Annotated[str, typer.Option("--url", metavar="URL", help="RAGFlow's web page.")]
Key = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="RAGFlow's, from avatar > API [RAGFLOW_API_KEY].")
]
Email = Annotated[
    str | None,
    typer.Option("--email", help="Log in with a password that is asked for; RAGFlow up to 0.22 wants that."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help=f"This server as RAGFlow sees it [http://{HERE}:PORT]."),
]
Instance = Annotated[str, typer.Option("--instance", help="Its name in RAGFlow from 0.26 on.")]
Default = Annotated[
    list[str] | None, typer.Option("--default", metavar="UID", help="A model to make the default of its type.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the calls that would change RAGFlow, and send none.")]


Lodger = Annotated[
    str | None,
    typer.Option("--url", "--endpoint", "-e", metavar="URL", help="The server to check [this home's server]."),
]
FromContainer = Annotated[
    str | None, typer.Option("--from-container", metavar="NAME", help="RAGFlow's container [found by its image].")
]


@GROUP.command("check")
def check_ragflow(
    url: Lodger = None,
    from_container: FromContainer = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
    json: Json = False,
) -> None:
    """Send this server what RAGFlow sends, from here and from RAGFlow's container.

    One line for each request of RAGFlow 0.17 to 0.27. Exit code 1 when one of them would fail.
    """
    from lodger.cli.render import say, show_json

    client = connect(url, api_key, home)
    collected: list[Check] = []
    for one in _checks(client, from_container, base_url or seen_from_docker(client.base_url), home):
        collected.append(one)
        if not json:
            print(f"{one.state:4}  {one.name}: {one.measured}", flush=True)
            if one.hint:
                print(f"      {one.hint}", flush=True)
    wrong = sum(one.state == "fail" for one in collected)
    if json:
        show_json(collected)
    else:
        say(f"{wrong} of {len(collected)} would fail in RAGFlow." if wrong else "RAGFlow can use this server.")
    if wrong:
        raise typer.Exit(1)


def _checks(client: Client, container: str | None, base_url: str, home: str | None) -> Iterator[Check]:
    from lodger.checks.base import Check
    from lodger.client import running_server
    from lodger.errors import LodgerError
    from lodger.ragflow.check import check, check_names
    from lodger.ragflow.docker import bridge_address, by_hand, check_listening, find_container, no_docker
    from lodger.ragflow.reply import Container, Direct

    models = _offers(client)
    found, docker = None, None
    try:
        found = find_container(container)
    except LodgerError as error:
        if container is not None:
            raise
        docker = no_docker(error, base_url)
    record = running_server(home_of(home))
    if record is not None and record.address == client.base_url:
        yield check_listening(record.host, record.port, bridge_address(), in_docker=found is not None)
    yield from check_names(models)
    yield from check(Direct(), client.base_url, client.api_key, models, thorough=True)
    if found is not None:
        yield from check(Container(found), base_url, client.api_key, models, thorough=False)
    else:
        nowhere = "no container of RAGFlow's image runs here; name one with --from-container"
        yield docker or Check(name="RAGFlow's container", state="warn", measured=nowhere, hint=by_hand(base_url))


@GROUP.command("connect")
def connect_ragflow(
    url: Url = "http://localhost",
    api_key: Key = None,
    email: Email = None,
    base_url: BaseUrl = None,
    instance: Instance = "lodger",
    default: Default = None,
    dry_run: DryRun = False,
    endpoint: Endpoint = None,
    home: HomeDir = None,
) -> None:
    """Register this server's models in RAGFlow and make them its defaults.

    For RAGFlow 0.17 to 0.27. It can be repeated: what is there is brought up to date.
    """
    from lodger.cli.render import say
    from lodger.ragflow.connect import connect as bring

    client = connect(endpoint, None, home)
    wanted = _registration(client, base_url, instance, default or [])
    ragflow = _ragflow(url, api_key, email, dry_run)
    for line in bring(ragflow, wanted):
        if not dry_run:
            print(line, flush=True)
    for call in ragflow.calls if dry_run else ():
        print(call.shown())
    if dry_run:
        say(f"{len(ragflow.calls)} calls would change {ragflow.url}; none was sent.")
    else:
        say(f"RAGFlow asks {wanted.base_url}. `lodger ragflow check` says whether that works from its container.")


def _registration(client: Client, base_url: str | None, instance: str, defaults: list[str]) -> Registration:
    from lodger.errors import ConfigProblem
    from lodger.ragflow.connect import Registration, chosen

    if instance == "default":
        raise ConfigProblem("RAGFlow takes no instance of the name 'default'.", hint="Name another with --instance.")
    models = _offers(client)
    return Registration(
        base_url=base_url or seen_from_docker(client.base_url),
        api_key=client.api_key or "x",
        instance=instance,
        models=models,
        defaults=chosen(models, defaults),
    )


def _offers(client: Client) -> tuple[Offer, ...]:
    from lodger.errors import NotReady
    from lodger.ragflow.connect import offers

    models = offers(client.get("/v1/models")["data"])
    if not models:
        raise NotReady("No model serves here yet.", hint="Start some with `lodger up`, then try again.")
    return models


def seen_from_docker(address: str) -> str:
    """This machine's server under the name that containers have for this machine; another's under its own."""
    from urllib.parse import urlsplit

    from lodger.client import is_loopback

    parts = urlsplit(address)
    here = is_loopback(parts.hostname or "")
    return f"http://{HERE}:{parts.port or 80}" if here else address


def _ragflow(url: str, api_key: str | None, email: str | None, dry: bool) -> Ragflow:
    from lodger.errors import ConfigProblem
    from lodger.ragflow.api import Ragflow
    from lodger.ragflow.login import login
    from lodger.settings import ragflow_api_key

    key = api_key or ragflow_api_key()
    if email:
        ragflow = Ragflow(url, dry=dry)
        login(ragflow, email, _password(email))
        return ragflow
    if not key:
        raise ConfigProblem(
            "RAGFlow wants to know who asks.",
            hint="Make an API key in RAGFlow under avatar > API, and give it with --api-key. Up to 0.22: --email.",
        )
    return Ragflow(url, authorization=f"Bearer {key}", dry=dry)


def _password(email: str) -> str:
    """From the terminal without showing it, or the first line of what is piped in."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"RAGFlow's password of {email}", hide_input=True, err=True))
    return sys.stdin.readline().rstrip("\n")
