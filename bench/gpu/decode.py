"""Chats of Qwen3-4B's exact shape with random weights, through the lane that serves them, against the card's limit.

    python -m bench.gpu.decode [--int8] [--streams N ...] [--out FILE]

Every stream is a prompt of 256 random tokens and 128 greedy ones. A step is timed in turns in which all of them decode,
as the device loop makes them. The limit of a step is the bytes of the weights and of the keys and values read, over
what a copy on the card moves. Then chats whose tokens are drawn as clients ask for it, and one prompt of 8,000 tokens,
to its first token.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tiny
import torch

from bench.gpu import part
from bench.turns import turn
from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import attention, families
from lodger.runtime.fused import FusedDecoder
from lodger.runtime.generating import GenerateLane, Generation
from lodger.runtime.kv import KVCache
from lodger.runtime.layers import Placement, PlainLinear
from lodger.runtime.precision import precision, with_int8
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Rules, Sampler, accept, choose
from lodger.runtime.weights import Checkpoint
from lodger.sched.sequence import Sequence as Chat
from lodger.sched.step import GenerateStep, Row

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16
PROMPT, MADE = 256, 128
STEP = 8192  # tokens, as the plan grants where the KV cache has 65,536
LONG = 8000  # tokens of the one long prompt
MOVED = 3.0e12  # bytes a second, read and written, of a large copy on an H100
PEERS = {1: 225, 8: 1_645, 32: 5_190, 128: 11_820, 256: 14_540}  # vLLM 0.25.1 on the same kind of card, tokens/s
STREAMS = (1, 8, 32, 64, 128, 256)
GREEDY = Rules(temperature=0)
DRAWN = {  # what clients send: Qwen3's own rules, RAGFlow's penalties beside them, and OpenAI's two alone
    "top-k": Rules(temperature=0.7, top_p=0.8, top_k=20),
    "penalties": Rules(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=0.4, frequency_penalty=0.7),
    "top-p": Rules(temperature=0.1, top_p=0.3),
}


def random_runner(*, int8: bool = False) -> Runner:
    """Weights made on the card: the folder's own are zeros that take no room."""
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_fake_folder(Path(folder) / "chat", "qwen3", "BF16", **tiny.QWEN3_4B)
        facts, checkpoint = inspect_folder(path), Checkpoint(path)
        for name, stored in checkpoint.tensors.items():
            made = torch.randn(stored.shape, device=DEVICE, dtype=DTYPE) * 0.02
            checkpoint.tensors[name] = made if stored.dim() == 2 else torch.ones_like(made)
        model = families.build(facts)
        checkpoint.fill(model)
    dense = precision("bfloat16", DEVICE)
    placement = Placement(DEVICE, with_int8(dense, DEVICE) if int8 else dense, lambda size: None)
    decoder = FusedDecoder(model, placement)
    head = PlainLinear(decoder.embed.weight, None)
    return Runner(facts, DEVICE, placement.precision, attention.choose(DEVICE), decoder, placement.held, head)


def key_bytes(facts: ModelFacts, tokens: int) -> int:
    return 2 * facts.layers * facts.kv_heads * facts.head_dim * DTYPE.itemsize * tokens


def cache_of(facts: ModelFacts, streams: int) -> KVCache:
    cache = KVCache(facts, streams * ((PROMPT + MADE) // 16 + 1) + 1, 16, DTYPE, DEVICE)
    cache.tensor.normal_()
    return cache


def lane_of(runner: Runner, streams: int) -> GenerateLane:
    return GenerateLane("chat", runner, cache_of(runner.facts, streams), STEP)


def serve(
    lane: GenerateLane,
    facts: ModelFacts,
    streams: int,
    made: int = MADE,
    tokens: int = PROMPT,
    rules: Rules = GREEDY,
) -> dict[str, float]:
    """The device loop's turns for `streams` chats that come at once."""
    arrivals: dict[int, list[float]] = {n: [] for n in range(streams)}
    for n in range(streams):
        prompt = torch.randint(5, facts.vocab_size, (tokens,)).tolist()
        sampler = Sampler(rules, n, prompt, facts.vocab_size, DEVICE)
        note = arrivals[n].append
        sequence = Chat(n, prompt, max_new_tokens=made)
        lane.add(Generation(sequence, sampler, frozenset(), lambda _, note=note: note(time.perf_counter())))  # type: ignore[misc]
    start = time.perf_counter()
    turns = list(_turns(lane))
    end = max(times[-1] for times in arrivals.values())
    ready = max(times[0] for times in arrivals.values())
    left = sum(sum(at > ready for at in times) for times in arrivals.values())
    first = sorted(times[0] - start for times in arrivals.values())
    return {
        "tok_s": streams * made / (end - start),
        "decode_tok_s": left / (end - ready),
        "step_ms": _step_ms(turns),
        "first_ms": first[len(first) // 2] * 1e3,
        "first_of_all_ms": first[0] * 1e3,
    }


def _turns(lane: GenerateLane) -> Iterator[tuple[int, float]]:
    """Rows that decode, 0 beside a prefill, and seconds of each turn until nothing is left to do."""
    last = time.perf_counter()
    while True:
        rows = lane._scheduler.decoding
        decoded, prefilled = turn(lane, STEP)
        if not (decoded or prefilled):
            return
        now = time.perf_counter()
        yield 0 if prefilled else rows, now - last
        last = now


def _step_ms(turns: list[tuple[int, float]]) -> float:
    """Median of the turns with the most rows. Their end is the end of the step before, which is waited for."""
    most = max(rows for rows, _ in turns)
    return statistics.median(spent for rows, spent in turns if rows == most) * 1e3


def replay_ms(lane: GenerateLane, streams: int) -> float:
    """Median time of one captured step, without any host work between two."""
    graphs: Any = lane._stepper._graphs  # type: ignore[union-attr]
    at, per = PROMPT + MADE // 2, (PROMPT + MADE) // 16 + 1
    rows = tuple(Row(n, (7,), at, tuple(range(n * per, n * per + at // 16 + 1)), True) for n in range(streams))
    graphs.run(GenerateStep("decode", rows), {})
    graph = graphs._graphs[next(size for size in graphs.buckets if size >= streams)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(31)]  # type: ignore[no-untyped-call]
    for mark in marks:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    times = sorted(before.elapsed_time(after) for before, after in zip(marks, marks[1:], strict=False))
    return float(times[len(times) // 2])


def kernels(lane: GenerateLane, streams: int) -> list[tuple[str, int, float]]:
    """(kernel, launches, microseconds) of one captured step."""
    graphs: Any = lane._stepper._graphs  # type: ignore[union-attr]
    graph = graphs._graphs[next(size for size in graphs.buckets if size >= streams)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        graph.replay()
        torch.cuda.synchronize()
    found = [(event.key, event.count, event.self_device_time_total) for event in profile.key_averages()]
    return sorted(found, key=lambda row: -row[2])[:14]


def measure(runner: Runner, all_streams: Sequence[int]) -> Iterator[dict[str, Any]]:
    facts = runner.facts
    for streams in all_streams:
        gc.collect()
        torch.cuda.empty_cache()
        before, start = torch.cuda.mem_get_info()[0], time.perf_counter()
        lane = lane_of(runner, streams)
        torch.cuda.synchronize()
        ready = time.perf_counter() - start
        taken = before - torch.cuda.mem_get_info()[0] - lane._cache.nbytes
        if streams == all_streams[0]:
            print(f"capture {ready:.1f} s, {taken / 2**20:.0f} MiB beside the cache", flush=True)
        first = serve(lane, facts, streams)
        row: dict[str, Any] = {"streams": streams, **serve(lane, facts, streams)}
        row["first_request_ms"] = first["first_ms"]
        row["graph_ms"] = replay_ms(lane, streams)
        read = runner.weight_bytes + key_bytes(facts, streams * (PROMPT + MADE // 2))
        row["limit_ms"] = read / MOVED * 1e3
        row |= {"peer": PEERS.get(streams), "capture_s": ready, "capture_bytes": taken}
        row["kernels"] = kernels(lane, streams)
        print(line(row), flush=True)
        for name, count, spent in row["kernels"] if streams in (1, 32, 128) else ():
            print(f"    {spent:8.0f} us {count:5} x {name[:90]}")
        del lane
        yield row


def drawn(runner: Runner, streams: int) -> Iterator[dict[str, Any]]:
    """The same chats with random choices; and what the choices of one step take by themselves."""
    lane = lane_of(runner, streams)
    for name, rules in DRAWN.items():
        gc.collect()
        serve(lane, runner.facts, streams, made=8, rules=rules)
        row = {"streams": streams, "rules": name, **serve(lane, runner.facts, streams, rules=rules)}
        row["draw_ms"] = draw_ms(runner.facts, streams, rules)
        print(
            f"{streams:>4} {row['tok_s']:>8,.0f} {row['decode_tok_s']:>8,.0f} with {name}: step "
            f"{row['step_ms']:.2f} ms, of which the choice {row['draw_ms']:.2f}",
            flush=True,
        )
        yield row


def draw_ms(facts: ModelFacts, rows: int, rules: Rules) -> float:
    """Of the card, for logits like a language model's: a few high ones among many."""
    logits = torch.randn(rows, facts.vocab_size, device=DEVICE, dtype=DTYPE).mul_(2.5)
    samplers = [Sampler(rules, n, range(64), facts.vocab_size, DEVICE) for n in range(rows)]
    best, times = logits.argmax(dim=-1), []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
        torch.cuda._sleep(10_000_000)  # cycles, in which all of it is launched
        begin.record()
        accept(choose(logits, samplers, best), samplers)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def prefill(runner: Runner) -> dict[str, float]:
    """One prompt of LONG tokens, in steps of STEP, to its first token; the second time."""
    lane = lane_of(runner, LONG // PROMPT)
    made = [serve(lane, runner.facts, 1, made=2, tokens=LONG) for _ in range(2)]
    return {"tokens": LONG, "first_ms": made[1]["first_ms"]}


def line(row: dict[str, Any]) -> str:
    peer = f"{row['peer']:>7,}" if row["peer"] else "      -"
    rates = f"{row['streams']:>4} {row['tok_s']:>8,.0f} {row['decode_tok_s']:>8,.0f} {peer}"
    steps = f"{row['step_ms']:>7.2f} {row['graph_ms']:>7.2f} {row['limit_ms']:>7.2f}"
    share = row["limit_ms"] / row["graph_ms"]
    return f"{rates} {steps} {share:>5.0%} {row['first_ms']:>8.1f} {row['first_request_ms']:>8.1f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--int8", action="store_true", help="weights of one byte in the layers")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="chats at once")
    options = part.options(__doc__, parser)
    raw: dict[str, Any] = {"rows": []}
    with torch.inference_mode():
        runner = random_runner(int8=options.int8)
        print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, weights {runner.weight_bytes / 2**30:.2f} GiB"
        )
        print("strm    tok/s   decode    peer step ms graph ms limit ms    % first ms  cold ms")
        for row in measure(runner, options.streams):
            raw["rows"].append(row)
            part.write(options, raw)
        if not options.int8:  # choices do not depend on the weights
            raw["drawn"] = list(drawn(runner, max(options.streams)))
        raw["prefill"] = prefill(runner)
        print(f"prefill of {LONG:,} tokens: {raw['prefill']['first_ms']:.0f} ms")
    part.write(options, raw)


if __name__ == "__main__":
    main()
