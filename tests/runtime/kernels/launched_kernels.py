"""What requests launch that a model's start did not, as Triton tells its builds of a kernel apart.

    python launched_kernels.py

Prints, as JSON, for each chip and kind of weights the builds that a start launches, and those that steps of random
texts launch beyond them. The code is the one that serves, over tensors in RAM and Qwen3-4B's and XLM-RoBERTa large's
matrices; nothing is computed. Triton must not have been imported as an interpreter, so this is a process of its own.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tiny
import torch
from compiled_kernels import DTYPE, PROCESSORS, Chip
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import attention, chunk_graphs, encoder_graphs, families, fused_encoder, graphs, sampling, stepper
from lodger.runtime.arena import HostArena
from lodger.runtime.attention import paged, varlen
from lodger.runtime.encoding import REHEARSED
from lodger.runtime.fused import FusedDecoder
from lodger.runtime.heads import EmbeddingHead
from lodger.runtime.int4 import Int4Linear
from lodger.runtime.kernels import arrivals, few_tokens, w4a16, w8a16
from lodger.runtime.kv import KVCache
from lodger.runtime.layers import Placement, PlainLinear
from lodger.runtime.precision import Precision
from lodger.runtime.quantised import QuantisedLinear
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Free, Rules, Sampler
from lodger.runtime.weights import Checkpoint
from lodger.sched.step import GenerateStep, Item, Row

CPU = torch.device("cpu")
# Chip, bits of a weight, tokens of a step, chats of a step, blocks of the cache.
CHATS = [(80, 16, 512, 16, 512), (80, 8, 2048, 64, 1200), (80, 4, 1024, 16, 512)]
CHATS += [(90, 16, 2048, 64, 1200), (90, 8, 4096, 64, 2000)]
TEXTS = [80, 90]
STEPS = 24
SMALL = {"num_hidden_layers": 2, "vocab_size": 8192}
launched: dict[str, str] = {}  # builds, and which step was the first to launch each
now = [""]


def only_tell(kernel: Any, key: Any, *_: Any) -> None:
    """Instead of compiling; nothing is launched then."""
    launched.setdefault(f"{kernel.fn.__module__}.{kernel.fn.__name__} {key}", now[0])


def stand_for(capability: int) -> None:
    """A card with nobody's libraries: their products and FlashAttention leave their results as they are."""
    driver.set_active(Chip(capability))
    JITFunction._do_compile = only_tell
    properties = SimpleNamespace(multi_processor_count=PROCESSORS[capability])
    torch.cuda.get_device_properties = lambda device: properties
    for module in (w8a16, w4a16, few_tokens, arrivals, fused_encoder):
        module.processors = lambda device: PROCESSORS[capability]
    for module in (attention, sampling):
        module.runs_kernels = lambda device: True
    for module in (paged, w8a16):
        module._is_hopper = lambda device: capability == 90
    for module in (graphs, chunk_graphs, encoder_graphs):
        module.captured = lambda step, *_: (step(), SimpleNamespace(replay=lambda: None))[1]
    varlen._flash = lambda query, *_: torch.empty_like(query)
    PlainLinear.forward = lambda linear, x: x.new_empty(*x.shape[:-1], len(linear.weight))
    fused_encoder._gelu = lambda linear, x: linear(x)
    torch.mm = lambda a, b, out=None: a.new_empty(len(a), b.shape[1]) if out is None else out


def linear(bits: int) -> Callable[..., Any]:
    """A stand-in for `Placement.linear` whose weights nobody has written."""

    def make(self: Placement, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> Any:
        rows, columns = sum(map(len, weights)), weights[0].shape[1]
        bias = None if biases[0] is None else torch.empty(rows, dtype=DTYPE)
        if bits == 8:
            return QuantisedLinear(torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows), bias)
        if bits == 4:
            words = torch.empty(columns // 128, rows, 16, dtype=torch.int32)
            return Int4Linear(words, torch.empty(columns // 128, rows, dtype=torch.int32), columns, bias)
        return PlainLinear(torch.empty(rows, columns, dtype=DTYPE), bias)

    return make


def runner_of(family: str, backbone: Callable[[Any, Placement], Any], bits: int, **shape: Any) -> Runner:
    Placement.linear = linear(bits)
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_fake_folder(Path(folder) / "model", family, "BF16", **shape | SMALL)
        facts, checkpoint = inspect_folder(path), Checkpoint(path)
        model = families.build(facts)
        checkpoint.fill(model)
        precision = Precision("bfloat16", DTYPE, DTYPE, 0, int8=bits == 8, int4=bits == 4)
        own = backbone(model, Placement(CPU, precision, lambda size: None, HostArena()))
    table = own.embed if facts.generates else own.words
    heads = {} if facts.generates else {"dense": EmbeddingHead("cls", True)}
    head = PlainLinear(table.weight, None)
    return Runner(facts, CPU, precision, paged.PagedAttention(CPU), own, 0, head, heads)


def chats(bits: int, step_tokens: int, most: int, blocks: int) -> Iterator[None]:
    """Yields once a model has started, and after requests."""
    runner = runner_of("qwen3", FusedDecoder, bits, **tiny.QWEN3_4B)
    stepper._graphs = lambda runner, cache, latest: graphs.DecodeGraphs(runner, cache, latest)
    stepper._chunks = lambda runner, cache, decode: chunk_graphs.ChunkGraphs(runner, cache, decode)
    made = stepper.Stepper(runner, KVCache(runner.facts, blocks, 16, DTYPE, CPU), most)
    made.warm_up(step_tokens)
    yield
    for number in range(STEPS):
        rows = rows_of(step_tokens, most, blocks)
        samplers = [sampler(runner.facts.vocab_size) for row in rows if row.sample]
        now[0] = f"step {number} of {[(len(row.tokens), row.start) for row in rows]}"
        made.launch(GenerateStep("prefill", rows), samplers)
    yield


def rows_of(step_tokens: int, most: int, blocks: int) -> tuple[Row, ...]:
    """Some chunks of prompts, of all orders of magnitude."""
    rows: list[Row] = []
    left = step_tokens
    for number in range(int((most + 1) ** random.random())):
        tokens = int((left + 1) ** random.random())
        past = random.choice((0, int((blocks * 16 - tokens) ** random.random())))
        own = tuple(random.choices(range(blocks), k=-(-(past + tokens) // 16)))
        rows.append(Row(number, (0,) * tokens, past, own, random.random() < 0.7))
        left -= tokens
        if not left:
            break
    return tuple(rows)


def sampler(width: int) -> Sampler:
    rules = Rules(
        temperature=random.choice((0, 0.7)),
        top_p=random.choice((1, 0.9)),
        top_k=random.choice((0, 20)),
        repetition_penalty=random.choice((1, 1.1)),
        frequency_penalty=random.choice((0, 0.5)),
    )
    return Sampler(
        rules,
        0,
        range(random.randrange(1, 40)),
        width,
        CPU,
        bias=random.choice(({}, {3: 1.0})),
        guide=random.choice((None, Free(width))),
    )


def texts() -> Iterator[None]:
    """As `chats`."""
    runner = runner_of("bge-m3", fused_encoder.FusedEncoder, 16, **tiny.XLM_R_LARGE)
    runner.backbone._captures = True  # type: ignore[attr-defined]
    runner.warm_up(8192)
    heads = tuple(runner.heads.values())
    for count in REHEARSED:
        runner.start([Item(0, n, (0, 0)) for n in range(count)], [heads] * count, whole=True).rows()
    yield
    for number in range(STEPS):
        lengths = [int(8192 ** random.random()) for _ in range(int(64 ** random.random()))]
        now[0] = f"step {number} of {lengths}"
        items = [Item(0, n, (0,) * length) for n, length in enumerate(lengths) if sum(lengths[: n + 1]) <= 8192]
        if items:
            runner.start(items, [heads] * len(items), whole=random.random() < 0.5).rows()
    yield


@torch.inference_mode()
def measure(capability: int, turns: Iterator[None]) -> dict[str, Any]:
    random.seed(0)
    stand_for(capability)
    launched.clear()
    now[0] = "start"
    next(turns)
    started = len(launched)
    next(turns)
    return {"started": started, "later": dict(list(launched.items())[started:])}


def main() -> None:
    found = {f"texts on {chip}": measure(chip, texts()) for chip in TEXTS}
    for chip, bits, *given in CHATS:
        found[f"{bits} bits on {chip}, {given}"] = measure(chip, chats(bits, *given))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
