"""2,048 texts through the lane that serves XLM-RoBERTa-large's exact shape with random weights, against the limit.

    python -m bench.gpu.encode [--out FILE]

Texts are ready made tokens, log-normal around 150 and 173 on average, 16 to 512; for the reranker they are pairs. They
come in requests of 64, as indexers send them, all at once. The limit is arithmetic: 2 operations a token for every
weight of the layers, and 4 * length * hidden for the attention, over what the card's large products reach.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch

from bench.gpu import part
from bench.gpu.limits import limits
from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import loading
from lodger.runtime.encoding import EncodeLane
from lodger.runtime.layers import Placement
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.runtime.weights import Checkpoint
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import Job
from lodger.sched.step import Item

DEVICE, DTYPE = torch.device("cuda:0"), torch.float16
TEXTS, REQUEST = 2048, 64
STEPS = (1024, 2048, 4096, 8192)
PROFILED = 8192
LONG, LONGEST = (2, 32), 8192  # documents in one request, and the tokens of each
HEAD = {"embed": "dense", "rerank": "score"}
FAMILY = {"embed": "bge-m3", "rerank": "bge-reranker"}
PEERS = {"vLLM 0.25.1": 510_000, "transformers, padded, sorted": 460_000}  # tokens/s on the same kind of card


def random_runner(lane: LaneName) -> Runner:
    """Weights made on the card: the folder's own are zeros that take no room."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_fake_folder(Path(folder) / "model", FAMILY[lane], "F16", **tiny.XLM_R_LARGE)
        facts, checkpoint = inspect_folder(path), Checkpoint(path)
        generator = torch.Generator(DEVICE).manual_seed(0)
        for name, stored in checkpoint.tensors.items():
            made = torch.randn(stored.shape, device=DEVICE, dtype=DTYPE, generator=generator) * 0.02
            checkpoint.tensors[name] = made + 1 if "LayerNorm.weight" in name else made
        placement = Placement(DEVICE, precision("float16", DEVICE), lambda size: None)
        return loading._assemble(facts, checkpoint, None, placement)


def lengths(count: int = TEXTS) -> list[int]:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.6 + 5.0
    return [int(n) for n in numbers.exp().clamp(16, 512)]


def jobs(lane: LaneName, vocabulary: int, sizes: list[int]) -> list[Job]:
    generator = torch.Generator().manual_seed(1)
    texts = [tuple(torch.randint(10, vocabulary - 10, (size,), generator=generator).tolist()) for size in sizes]
    starts = range(0, len(texts), REQUEST)
    return [Job(at, lane, tuple(Item(at, n, text) for n, text in enumerate(texts[at : at + REQUEST]))) for at in starts]


def serve(lane: EncodeLane, work: list[Job]) -> dict[str, float]:
    """The device loop's turns for requests that come at once."""
    heads = (lane.runner.heads[HEAD[work[0].lane]],)
    done: list[float] = []
    for job in work:
        lane.add(job, heads, lambda _: done.append(time.perf_counter()))
    torch.cuda.synchronize()
    start, host, steps = time.perf_counter(), 0.0, 0
    while len(done) < len(work):
        claims = list(lane.claims(lane.step_tokens))
        before = time.perf_counter()
        for claim in claims:
            lane.micro_step(claim.lane, lane.step_tokens)
        host, steps = host + time.perf_counter() - before, steps + len(claims)
        lane.deliver(wait=not claims)
    spent = max(done) - start
    texts, tokens = sum(len(job.items) for job in work), sum(len(i.tokens) for job in work for i in job.items)
    return {"texts_s": texts / spent, "tok_s": tokens / spent, "steps": steps, "host_ms": host / steps * 1e3}


def limit_tok_s(sizes: list[int], operations: float, hidden: int = 1024, inner: int = 4096, layers: int = 24) -> float:
    """See the module's docstring."""
    products = 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)
    work = sum(size * (products + 4 * layers * hidden * size) for size in sizes)
    return sum(sizes) * operations / work


@contextmanager
def profiled(found: list[tuple[str, int, float]]) -> Iterator[None]:
    """(kernel, launches, milliseconds) of the block, longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        yield
        torch.cuda.synchronize()
    rows = [(event.key, event.count, event.self_device_time_total / 1e3) for event in profile.key_averages()]
    found.extend(sorted(rows, key=lambda row: -row[2])[:16])


def measure(name: LaneName, operations: float) -> list[dict[str, Any]]:
    runner, sizes = random_runner(name), lengths()
    work, rows = jobs(name, runner.facts.vocab_size, sizes), []
    limit = limit_tok_s(sizes, operations)
    runner.warm_up(max(STEPS))  # what a model's first lane has captured serves all later ones
    for step in STEPS:
        gc.collect()  # of the model that was built for its weights
        torch.cuda.empty_cache()
        lane = EncodeLane(name, runner, name, step)
        serve(lane, work)
        row = {"lane": name, "step_tokens": step, "limit_tok_s": limit, **serve(lane, work)}
        row["held_mib"] = held_mib(runner)
        rows.append(row)
        print(line(row), flush=True)
        if step == PROFILED:
            kernels: list[tuple[str, int, float]] = []
            with profiled(kernels):
                serve(lane, work)
            row["kernels"] = kernels
            for kernel, count, spent in kernels:
                print(f"    {spent:8.2f} ms {count:6} x {kernel[:110]}", flush=True)
    return rows


def long_documents() -> list[dict[str, Any]]:
    """Memory beside the weights for few and for many documents of `LONGEST` tokens in one request."""
    runner, rows = random_runner("embed"), []
    for documents in LONG:
        lane = EncodeLane("embed", runner, "embed", LONGEST)
        (work,) = jobs("embed", runner.facts.vocab_size, [LONGEST] * documents)
        gc.collect()
        torch.cuda.empty_cache()
        row = {"documents": documents, "tokens": LONGEST, **serve(lane, [work])}
        row["held_mib"] = held_mib(runner)
        rows.append(row)
        print(f"{documents:>4} documents of {LONGEST:,}: {row['tok_s']:>9,.0f} tok/s, {row['held_mib']:.0f} MiB")
    return rows


def held_mib(runner: Runner) -> float:
    """What torch holds beside the weights: captured steps and activations."""
    return (torch.cuda.memory_reserved() - runner.weight_bytes) / 2**20


def line(row: dict[str, Any]) -> str:
    rates = f"{row['lane']:>7} {row['step_tokens']:>6} {row['tok_s']:>9,.0f} {row['texts_s']:>7,.0f}"
    share = row["tok_s"] / row["limit_tok_s"]
    return f"{rates} {share:>4.0%} {row['host_ms']:>8.2f} {row['steps']:>6} {row['held_mib']:>9.0f}"


def main() -> None:
    given = part.options(__doc__)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        _, operations = limits()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {operations / 1e12:.0f} TFLOP/s")
        print("   lane   step     tok/s texts/s    %  host ms  steps       MiB")
        for name in ("embed", "rerank"):
            rows += measure(name, operations)  # type: ignore[arg-type]
            raw = {"gpu": torch.cuda.get_device_name(), "operations_s": operations, "rows": rows}
            part.write(given, raw)
        part.write(given, raw | {"long": long_documents()})


if __name__ == "__main__":
    main()
