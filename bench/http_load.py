"""Many chat streams at once, through HTTP and to the engine alone: what share of its rate arrives, and what it costs.

    python -m bench.http_load --model FOLDER [--streams 128] [--engine bench.paced:paced] [--out FILE]

The engine is first asked in a process of its own, then `lodger serve` is started with the same folder and several
clients ask it the same. Tokens are those of the server's own usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
import uvloop

from bench import paced
from bench.http_client import prompt, request, summary, through_http
from lodger.budget import Budget
from lodger.catalogue.inspect import inspect_folder
from lodger.device.nvml import probe_gpus
from lodger.engines import open_engine
from lodger.engines.base import LoadRequest, Model
from lodger.plan.planner import plan
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.tasks import ChatTask, SamplingParams, StopRules
from lodger.units import GIB

PORT = 9962
CONTEXT = 4096
KV_TOKENS = 128 * 512  # of an engine on the CPU
READY_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What is asked of whom."""

    model: Path  # folder of a model
    kind: Literal["chat", "embedding"] = "chat"
    engine: str = "native"
    device: str = "cpu"
    streams: tuple[int, ...] = (1, 8, 32, 128)
    made: int = 128  # tokens of each answer
    clients: int = 4  # processes
    rounds: int = 2  # of which the best counts, after one that does not
    gib: float = 24.0  # that the model is given on a GPU


async def _ask(model: Model, number: int, made: int) -> dict[str, Any]:
    task = ChatTask(
        model="chat",
        messages=({"role": "user", "content": prompt(number)},),
        sampling=SamplingParams(temperature=0, repetition_penalty=1.0),
        stopping=StopRules(max_tokens=made, ignore_eos=True),
    )
    sent, tokens = time.perf_counter(), 0
    arrivals: list[float] = []
    async for delta in model.generate(task):
        arrivals.append(time.perf_counter())
        tokens = delta.usage.completion_tokens if delta.usage else tokens
    return {"sent": sent, "arrivals": arrivals, "events": len(arrivals), "tokens": tokens}


async def _ask_all(model: Model, numbers: Sequence[int], made: int) -> list[dict[str, Any]]:
    return await asyncio.gather(*(_ask(model, number, made) for number in numbers))


def numbers(streams: int, turn: int) -> range:
    """Of the prompts of one round: other ones in each, or the prefix cache would have read them all before."""
    return range((turn + 1) * 10_000 + streams * 1000, (turn + 1) * 10_000 + streams * 1000 + streams)


def load(what: Load) -> Model:
    facts = inspect_folder(what.model)
    context = CONTEXT if what.kind == "chat" else None
    spec = ModelSpec(uid=what.kind, path=str(what.model), context_length=context)
    if what.device == "cpu":
        keys = 2 * facts.layers * facts.kv_heads * facts.head_dim * 4 * KV_TOKENS
        weights, dtype = 4 * facts.parameters + GIB, "float32"
        budget = Budget(weights=weights, kv_cache=keys, context_length=context or facts.context_length)
    else:
        [card, *_] = probe_gpus(visible=["0"])
        view = msgspec.structs.replace(card, free=int(what.gib * GIB), ours=0, neighbours=())
        [granted] = plan(view, (Candidate(spec, facts),), reserve=0).models
        budget, dtype = granted.budget, granted.dtype
    asked = LoadRequest(spec=spec, facts=facts, budget=budget, device=what.device, dtype=dtype)
    return open_engine(what.engine, what.device).load(asked, lambda _: None)


def _alone(what: Load, out: Connection) -> None:
    """Runs in a process of its own, which takes with it what it held."""
    model = load(what)
    for streams in what.streams:
        rounds = [uvloop.run(_ask_all(model, numbers(streams, turn), what.made)) for turn in range(what.rounds + 1)]
        out.send(best([summary(found) for found in rounds[1:]]))
    os._exit(0)


def alone(what: Load) -> Iterator[dict[str, Any]]:
    """The best round of each number of streams, without HTTP and without any other process."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_alone, args=(what, theirs))
    process.start()
    theirs.close()
    for _ in what.streams:
        yield ours.recv()
    process.join()


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rounds, key=lambda row: float(row["tok_s"]))


@contextmanager
def serving(what: Load, home: Path) -> Iterator[int]:
    """The pid of a `lodger serve` whose model answers."""
    wanted = home / "lodger.yaml"
    model: dict[str, Any] = {"path": str(what.model.absolute())}
    if what.kind == "chat":
        model["context_length"] = CONTEXT
    if what.device != "cpu":
        model["memory"] = f"{what.gib}GiB"
    wanted.write_text(json.dumps({"models": {what.kind: model}}))  # which is YAML too
    program = [sys.executable, "-m", "bench.paced" if what.engine == paced.NAME else "lodger", "serve"]
    options = ["--file", str(wanted), "--home", str(home), "--port", str(PORT), "--engine", what.engine]
    here = str(Path(__file__).parent.parent)  # where a worker finds `paced`
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    with (home / "out.log").open("wb") as log:
        process = subprocess.Popen([*program, *options], stdout=log, stderr=log, env=environment)
        try:
            _wait_answering(process, what.kind)
            yield process.pid
        except BaseException:
            for file in (home / "out.log", *home.glob("**/*.log")):
                print(f"--- {file}", file.read_text()[-3000:], sep="\n", file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


_QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
    "embedding": ("/v1/embeddings", {"input": "Hi"}),
}


def _wait_answering(process: subprocess.Popen[bytes], kind: str) -> None:
    path, body = _QUESTIONS[kind]
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.post(f"http://127.0.0.1:{PORT}{path}", json=body | {"model": kind}, timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server never answered")


def measure(what: Load) -> Iterator[dict[str, Any]]:
    """For each number of streams what the engine makes alone, what comes through HTTP, and the share of it."""
    rows = [{"streams": n, "alone": row} for n, row in zip(what.streams, alone(what), strict=True)]
    with tempfile.TemporaryDirectory() as home, serving(what, Path(home)) as pid:
        for row in rows:
            rounds = [
                [request("chat", number, what.made) for number in numbers(row["streams"], turn)]
                for turn in range(what.rounds + 1)
            ]
            row["http"] = best([through_http(PORT, pid, bodies, what.clients) for bodies in rounds][1:])
            row["share"] = round(row["http"]["tok_s"] / row["alone"]["tok_s"], 3)
            print(f"{row['streams']} streams: {row['share']:.1%} of the engine's rate through HTTP", flush=True)
            for kind in ("alone", "http"):
                print(f"  {kind:5} {json.dumps(row[kind])}", flush=True)
            yield row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of a chat model")
    options.add_argument("--engine", default="native", help=f"or {paced.NAME}")
    options.add_argument("--device", default="cpu", help="of the engine alone")
    options.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 128])
    options.add_argument("--made", type=int, default=128, help="tokens of each answer")
    options.add_argument("--clients", type=int, default=4, help="processes")
    options.add_argument("--rounds", type=int, default=2, help="of which the best counts, after one that does not")
    options.add_argument("--out", type=Path)
    given = vars(options.parse_args())
    out = given.pop("out")
    rows = list(measure(Load(**given | {"streams": tuple(given["streams"])})))
    if out:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
