"""`lodger launch`: load one model on a running server, with the flags of `xinference launch`.

It sends what Xinference's command line would send, so a flag means the same from either of them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lodger.cli.options import ApiKey, Endpoint, FromHub, HomeDir, connect, home_of

if TYPE_CHECKING:
    from lodger.catalogue.repository import HubName
    from lodger.client import Client

# `--foo v` that is not listed goes along too, as Xinference takes it for its engines; the answer says what it is worth.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

Name = Annotated[str | None, typer.Option("--model-name", "-n", help="A name of the catalogue or of a hub.")]
Uid = Annotated[str | None, typer.Option("--model-uid", "-u", help="What requests will call it [the name].")]
Type = Annotated[str | None, typer.Option("--model-type", "-t", help="LLM, embedding or rerank [as the folder says].")]
Engine = Annotated[str | None, typer.Option("--model-engine", "-en", help="transformers, vllm, ...: any known name.")]
Folder = Annotated[str | None, typer.Option("--model-path", "-mp", metavar="FOLDER", help="The model's folder.")]
Size = Annotated[str | None, typer.Option("--size-in-billions", "-s", help="Picks among the sizes of one name.")]
Context = Annotated[int | None, typer.Option("--context-length", min=1, help="Tokens of prompt and answer together.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="The most it may hold, like 6GiB.")]
Utilization = Annotated[
    float | None, typer.Option("--gpu-memory-utilization", help="vLLM's fraction of the whole card; said back in GiB.")
]
Format = Annotated[str | None, typer.Option("--model-format", "-f", help="What the folder holds is served.")]
Quantization = Annotated[
    str | None, typer.Option("--quantization", "-q", help="int8 for weights of one byte [as they are].")
]
Replica = Annotated[int | None, typer.Option("--replica", "-r", min=1, help="Copies, each on a GPU of its own.")]
Gpus = Annotated[str | None, typer.Option("--n-gpu", help="One GPU serves each replica.")]
GpuIndex = Annotated[str | None, typer.Option("--gpu-idx", help="GPUs it may go on, like 0 or 0,1 [any].")]
VirtualEnv = Annotated[
    bool | None, typer.Option("--enable-virtual-env/--disable-virtual-env", help="There are no such environments.")
]


def run(
    context: typer.Context,
    model_name: Name = None,
    model_uid: Uid = None,
    model_type: Type = None,
    model_engine: Engine = None,
    model_path: Folder = None,
    size_in_billions: Size = None,
    context_length: Context = None,
    memory: Memory = None,
    gpu_memory_utilization: Utilization = None,
    model_format: Format = None,
    quantization: Quantization = None,
    replica: Replica = None,
    n_gpu: Gpus = None,
    gpu_idx: GpuIndex = None,
    enable_virtual_env: VirtualEnv = None,
    hub: FromHub = None,
    endpoint: Endpoint = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
) -> None:
    """Load a model on a running server.

    Takes the flags of `xinference launch`, those without effect too, and prints the uid as it does. A model that is
    named and not on this disk is fetched first, where the server is this home's.
    """
    if model_name is None and model_path is None:
        raise typer.BadParameter("say which model: --model-name NAME or --model-path FOLDER.")
    client = connect(endpoint, api_key, home)
    if model_name and not model_path:
        _fetch(client, model_name, size_in_billions, hub, home)
    asked = {
        "model_name": model_name,
        "model_uid": model_uid,
        "model_type": _model_type(model_type),
        "model_engine": model_engine,
        "model_path": _absolute(client, model_path),
        "model_size_in_billions": size_in_billions,
        "context_length": context_length,
        "memory": memory,
        "gpu_memory_utilization": gpu_memory_utilization,
        "model_format": model_format,
        "quantization": quantization,
        "replica": replica,
        "n_gpu": _value(n_gpu),
        "gpu_idx": _value(gpu_idx),
        "enable_virtual_env": enable_virtual_env,
        **_pairs(context.args),
    }
    _launch(client, {name: value for name, value in asked.items() if value is not None})


def _fetch(client: Client, name: str, size: str | None, hub: HubName | None, home_dir: str | None) -> None:
    """Another home's server looks into folders of its own; and no server fetches because a request says so."""
    from lodger.cli.fetching import fetched
    from lodger.client import running_server
    from lodger.spec import ModelSpec

    home = home_of(home_dir)
    record = running_server(home)
    if record is not None and record.address == client.base_url and not _registered(client, name):
        fetched(ModelSpec(uid=name, name=name, size_in_billions=size), home, hub)


def _registered(client: Client, name: str) -> bool:
    """Whether the server knows the name from a user, who said where its folder is."""
    rows = (row for kind in ("LLM", "embedding", "rerank") for row in client.get(f"/v1/model_registrations/{kind}"))
    return any(row["model_name"] == name and not row["is_builtin"] for row in rows)


def _launch(client: Client, body: dict[str, Any]) -> None:
    from lodger.cli.progress import raise_failed, wait_settled
    from lodger.cli.render import say

    uid = client.post("/v1/models?wait_ready=false", body)["model_uid"]
    settled = wait_settled(client, [uid])
    for status in settled:
        for note in status.spec.notes:
            say(f"note: {note}")
    raise_failed(settled)
    print(f"Model uid: {uid}")


def _pairs(args: list[str]) -> dict[str, Any]:
    """`--foo-bar v` and `--foo_bar=v` as Xinference's `foo_bar`."""
    pairs: dict[str, Any] = {}
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            value = next(words, "--")
        if not name.startswith("--") or value.startswith("--"):
            raise typer.BadParameter(f"{word!r} is not understood; options are written `--name value`.")
        pairs[name.removeprefix("--").replace("-", "_")] = _value(value)
    return pairs


def _value(word: str | None) -> Any:
    """A number, true, false or null where it reads like one."""
    try:
        return json.loads((word or "null").lower())
    except ValueError:
        return word


def _model_type(word: str | None) -> str | None:
    return "LLM" if word and word.lower() in ("llm", "chat") else word


def _absolute(client: Client, path: str | None) -> str | None:
    """A server on this machine may have another working directory; another machine has other folders."""
    return os.path.abspath(os.path.expanduser(path)) if path and client.local else path
