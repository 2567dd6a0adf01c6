"""`lodger ragflow`: what RAGFlow needs to use the models of this server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import Endpoint, HomeDir, connect

if TYPE_CHECKING:
    from lodger.client import Client
    from lodger.ragflow.api import Ragflow
    from lodger.ragflow.connect import Registration

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
    from lodger.errors import ConfigProblem, NotReady
    from lodger.ragflow.connect import Registration, chosen, offers

    if instance == "default":
        raise ConfigProblem("RAGFlow takes no instance of the name 'default'.", hint="Name another with --instance.")
    models = offers(client.get("/v1/models")["data"])
    if not models:
        raise NotReady("No model serves here yet.", hint="Start some with `lodger up`, then try again.")
    return Registration(
        base_url=base_url or seen_from_docker(client.base_url),
        api_key=client.api_key or "x",
        instance=instance,
        models=models,
        defaults=chosen(models, defaults),
    )


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
