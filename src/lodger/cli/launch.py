"""`lodger launch`: start one model, with the flags of `xinference launch`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, connect

if TYPE_CHECKING:
    from lodger.client import Client
    from lodger.tasks import Kind

# `--foo v` that Lodger does not know is taken along as a note, as Xinference takes it for its engines.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}

Name = Annotated[str | None, typer.Option("--model-name", "-n", help="A name of the catalogue or of a hub.")]
Uid = Annotated[str | None, typer.Option("--model-uid", "-u", help="What requests will call it [the name].")]
Type = Annotated[str | None, typer.Option("--model-type", "-t", help="LLM, embedding or rerank [as the folder says].")]
Engine = Annotated[str | None, typer.Option("--model-engine", "-en", help="transformers, vllm, ...: any known name.")]
Path = Annotated[str | None, typer.Option("--model-path", "-mp", metavar="FOLDER", help="The model's folder.")]
Size = Annotated[str | None, typer.Option("--size-in-billions", "-s", help="Picks among the sizes of one name.")]
Context = Annotated[int | None, typer.Option("--context-length", min=1, help="Tokens of prompt and answer together.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Most it may hold, like 6GiB.")]
Format = Annotated[str | None, typer.Option("--model-format", "-f", help="Without effect: read from the folder.")]
Quantization = Annotated[str | None, typer.Option("--quantization", "-q", help="Noted; 'none' is what is served.")]
Replica = Annotated[int, typer.Option("--replica", "-r", help="Without effect: one copy serves all callers at once.")]
Gpus = Annotated[str | None, typer.Option("--n-gpu", help="Without effect: the plan decides.")]
GpuIndex = Annotated[str | None, typer.Option("--gpu-idx", help="Without effect: the plan decides.")]
Utilization = Annotated[
    float | None, typer.Option("--gpu-memory-utilization", min=0.0, max=1.0, help="vLLM's fraction, as a limit in GiB.")
]
VirtualEnv = Annotated[
    bool | None,
    typer.Option("--enable-virtual-env/--disable-virtual-env", help="Without effect: there are no such environments."),
]


def run(
    context: typer.Context,
    model_name: Name = None,
    model_uid: Uid = None,
    model_type: Type = None,
    model_engine: Engine = None,
    model_path: Path = None,
    size_in_billions: Size = None,
    context_length: Context = None,
    memory: Memory = None,
    gpu_memory_utilization: Utilization = None,
    model_format: Format = None,
    quantization: Quantization = None,
    replica: Replica = 1,
    n_gpu: Gpus = None,
    gpu_idx: GpuIndex = None,
    virtual_env: VirtualEnv = None,
    endpoint: Endpoint = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
) -> None:
    """Load a model on a running server.

    Takes the flags of `xinference launch`, and prints the uid as it does. Options that are not listed are noted and
    have no effect.
    """
    if model_name is None and model_path is None:
        raise typer.BadParameter("say which model: --model-name NAME or --model-path FOLDER.")
    unused = {
        "model-format": model_format,
        "quantization": quantization,
        "replica": replica if replica != 1 else None,
        "n-gpu": n_gpu,
        "gpu-idx": gpu_idx,
        "virtual-env": {True: "enabled", False: "disabled", None: None}[virtual_env],
        **_pairs(context.args),
    }
    from lodger.cli.progress import raise_failed, wait_settled
    from lodger.cli.render import say
    from lodger.spec import ModelSpec, check_uid
    from lodger.units import parse_size

    client = connect(endpoint, api_key, home)
    limit, explained = _limit(client, parse_size(memory) if memory else None, gpu_memory_utilization)
    spec = ModelSpec(
        uid=check_uid(model_uid or _last_part(model_name or model_path or "")),
        name=model_name,
        path=_absolute(client, model_path),
        kind=_kind(model_type),
        size_in_billions=size_in_billions,
        context_length=context_length,
        memory=limit,
        engine=model_engine,
        notes=(*explained, *(f"{name} {value}: no effect here" for name, value in unused.items() if value is not None)),
    )
    for note in client.launch(spec).spec.notes:
        say(f"note: {note}")
    raise_failed(wait_settled(client, [spec.uid]))
    print(f"Model uid: {spec.uid}")


def _pairs(args: list[str]) -> dict[str, str]:
    """`--foo v --bar w` as a dict; `--foo=v` too."""
    pairs: dict[str, str] = {}
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or (not equals and (value := next(words, "--")).startswith("--")):
            raise typer.BadParameter(f"{word!r} has no value; options are written `--name value`.")
        pairs[name.removeprefix("--")] = value
    return pairs


def _kind(model_type: str | None) -> Kind | None:
    kinds: dict[str, Kind] = {"llm": "chat", "chat": "chat", "embedding": "embedding", "rerank": "rerank"}
    if model_type is not None and model_type.lower() not in kinds:
        raise typer.BadParameter(f"{model_type!r} is not LLM, embedding or rerank.", param_hint="--model-type")
    return kinds[model_type.lower()] if model_type else None


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _absolute(client: Client, path: str | None) -> str | None:
    """A server on this machine may have another working directory; another machine has other folders."""
    return os.path.abspath(os.path.expanduser(path)) if path and client.local else path


def _limit(client: Client, memory: int | None, fraction: float | None) -> tuple[int | None, tuple[str, ...]]:
    """vLLM's fraction of the whole card as bytes, with a note that says so."""
    from lodger.units import gib

    plans = client.status().plan if fraction is not None else ()
    if fraction is None or not plans:
        return memory, ()
    device = plans[0].device
    limit = min(memory or device.total, int(fraction * device.total))
    return limit, (f"gpu-memory-utilization {fraction:g} of {gib(device.total)} ({device.id}): at most {gib(limit)}",)
