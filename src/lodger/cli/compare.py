"""`lodger compare`: this server beside another one, by the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, Json, connect

if TYPE_CHECKING:
    from lodger.checks.compare import Compared

Other = Annotated[str, typer.Argument(metavar="URL", help="The other server, such as http://127.0.0.1:9998.")]
OtherKey = Annotated[str | None, typer.Option("--their-key", metavar="KEY", help="The other server's key.")]


def run(
    url: Other,
    their_key: OtherKey = None,
    endpoint: Endpoint = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
    json: Json = False,
) -> None:
    """Ask this server and another one the same, side by side.

    Models are paired by uid, or by type where each side has one. Exit code 1 when one could not be compared.
    """
    from lodger.checks.compare import compare, paired
    from lodger.cli.render import show_json, show_table
    from lodger.client import Client
    from lodger.errors import UnknownModel

    ours, theirs = connect(endpoint, api_key, home), Client(url, api_key=their_key)
    pairs = paired(ours.get("/v1/models")["data"], theirs.get("/v1/models")["data"])
    if not pairs:
        raise UnknownModel("No model serves on both.", hint="Give both the same uid; `lodger adopt` does.")
    found = list(compare(ours, theirs, pairs))
    if json:
        show_json(found)
    else:
        columns = ("UID", "TYPE", "AGREEMENT", "SECONDS HERE", "SECONDS THERE", "THERE / HERE")
        show_table(columns, [_row(one) for one in found])
    if any(one.problem for one in found):
        raise typer.Exit(1)


def _row(one: Compared) -> tuple[str, ...]:
    if one.problem:
        return one.uid, one.kind, one.problem, "-", "-", "-"
    here, there = one.ours["seconds"], one.theirs["seconds"]
    return one.uid, one.kind, _agreement(one), f"{here:.3f}", f"{there:.3f}", f"{there / here:.2f}" if here else "-"


def _agreement(one: Compared) -> str:
    a = one.agreement
    if one.kind == "embedding":
        return f"cosine {a['cosine_mean']:.5f}, least {a['cosine_least']:.5f}"
    if one.kind == "rerank":
        return f"{a['same_order']:.0%} of pairs in the same order, scores within {a['score_difference']:.4f}"
    first = f"first words {one.ours['first_seconds']:.3f} and {one.theirs['first_seconds']:.3f} s"
    long = f"{one.ours['characters']:.0f} and {one.theirs['characters']:.0f} characters"
    return f"{a['same_text']:.0%} of answers the same, {long}, {first}"
