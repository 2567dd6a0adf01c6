"""Captured decode steps on a GPU: they compute what single launches compute, and chats cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import far

from lodger.catalogue.inspect import inspect_folder
from lodger.runtime import attention, stepper
from lodger.runtime.generating import GenerateLane, Generation, Made
from lodger.runtime.kv import KVCache
from lodger.runtime.loading import load_runner
from lodger.runtime.packed import pack_rows
from lodger.runtime.precision import precision
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import Rules, Sampler
from lodger.sched.sequence import Sequence
from lodger.sched.step import PENDING, GenerateStep, Row
from lodger.units import GIB

CUDA = torch.device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama"])
def runner(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Runner:
    facts = inspect_folder(tiny(request.param))
    return load_runner(facts, GIB, [precision("bfloat16", CUDA)], CUDA, lambda _: None)


def decode(tokens: list[tuple[int, ...]], at: int, known: bool) -> GenerateStep:
    blocks = [tuple(range(20 * n, 20 * n + at // 16 + 1)) for n in range(len(tokens))]
    rows = [Row(n, (own[at] if known else PENDING,), at, blocks[n], True) for n, own in enumerate(tokens)]
    return GenerateStep("decode", tuple(rows))


@pytest.mark.parametrize("count", [1, 3, 8, 21, 64])
@torch.inference_mode()
def test_a_graph_computes_what_single_launches_do(count: int, runner: Runner) -> None:
    from lodger.runtime.graphs import DecodeGraphs

    caches = [KVCache(runner.facts, 20 * count, 16, runner.precision.compute, CUDA) for _ in "ab"]
    latest = torch.zeros(64, dtype=torch.int64, device=CUDA)
    graphs = DecodeGraphs(runner, caches[0], latest)
    tokens = [tuple(torch.randint(3, runner.facts.vocab_size, (300,)).tolist()) for _ in range(count)]
    start = 30
    blocks = [tuple(range(20 * n, 20 * n + 20)) for n in range(count)]
    prompt = [Row(n, own[:start], 0, blocks[n], True) for n, own in enumerate(tokens)]
    for cache in caches:
        runner.hidden(pack_rows(prompt, 16, CUDA), cache)
    assert runner.lm_head is not None
    for at in range(start, start + 40):
        known = at % 3 != 0
        step = decode(tokens, at, known)
        assert graphs.serves(step)
        places = {n: count - 1 - n for n in range(count)}
        latest[:count] = torch.tensor([own[at] for own in reversed(tokens)])
        logits, best = graphs.run(step, places)
        batch = pack_rows(decode(tokens, at, True).rows, 16, CUDA)
        expected = runner.lm_head(runner.hidden(batch, caches[1]))
        assert far(logits, expected) < runner.precision.tolerance
        assert torch.equal(best, logits.argmax(-1))
    assert far(caches[0].tensor, caches[1].tensor) < runner.precision.tolerance


@torch.inference_mode()
def test_a_captured_chunk_computes_what_single_launches_do(runner: Runner) -> None:
    """Prompts that begin, go on and end in steps of several sequences, of sizes that leave some of a graph unused."""
    from lodger.runtime.chunk_graphs import SEQUENCES, SIZES, ChunkGraphs
    from lodger.runtime.graphs import DecodeGraphs

    caches = [KVCache(runner.facts, 40 * SEQUENCES, 16, runner.precision.compute, CUDA) for _ in "ab"]
    decode = DecodeGraphs(runner, caches[0], torch.zeros(8, dtype=torch.int64, device=CUDA))
    graphs = ChunkGraphs(runner, caches[0], decode)
    tokens = [torch.randint(3, runner.facts.vocab_size, (600,)).tolist() for _ in range(SEQUENCES)]
    at = [0] * SEQUENCES
    largest, each = SIZES[-1], range(SEQUENCES)
    some = {0: 64}, {0: 3, 1: 50}, dict.fromkeys(each, 1), {2: largest - 200, 3: 200}
    more = {0: 17, 2: 9, 3: 30}, dict.fromkeys(each, 32), {1: 200, 3: 1}
    for step in (*some, *more):
        rows = []
        for n, count in step.items():
            blocks = tuple(range(40 * n, 40 * n + (at[n] + count + 15) // 16))
            rows.append(Row(n, tuple(tokens[n][at[n] : at[n] + count]), at[n], blocks, True))
            at[n] += count
        batch = pack_rows(rows, 16, CUDA)
        assert graphs.serves(batch)
        found = graphs.run(batch).clone()
        assert far(found, runner.hidden(batch, caches[1])) < runner.precision.tolerance
    assert far(caches[0].tensor, caches[1].tensor) < runner.precision.tolerance
    assert max(at) <= runner.facts.context_length, "graphs have no room for blocks beyond it"
    long = Row(0, tuple(tokens[0][: largest + 1]), 0, tuple(range(-(-(largest + 1) // 16))), True)
    assert not graphs.serves(pack_rows([long], 16, CUDA))


def chat(runner: Runner, most: int, prompts: int) -> dict[int, list[Made]]:
    """Everything that chats of many kinds are told, through a lane that is driven as the device's thread drives it."""
    lane = GenerateLane("m", runner, KVCache(runner.facts, most, 16, runner.precision.compute, CUDA), 256)
    told: dict[int, list[Made]] = {n: [] for n in range(prompts)}
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.8},
                                   {"temperature": 0.8, "top_k": 20, "top_p": 0.8},
                                   {"temperature": 0, "frequency_penalty": 1.5}, {"top_p": 0.9}]  # fmt: skip
    for n in range(prompts):
        prompt = [(7 * n + 3 * at) % 250 + 5 for at in range(3 + 13 * n % 60)]
        rules = Rules(**kinds[n % len(kinds)])
        sampler = Sampler(rules, n, prompt, runner.facts.vocab_size, CUDA)
        sequence = Sequence(n, prompt, max_new_tokens=1 + 5 * n % 40)
        stops = frozenset(range(0, 40, 7)) if n % 4 == 3 else frozenset()
        lane.add(Generation(sequence, sampler, stops, told[n].append))
    for turn in range(4000):
        if lane.decoding:
            lane.decode()
        for claim in lane.claims(64):
            lane.micro_step(claim.lane, 64)
        if turn == 9:
            lane.cancel(5)
        if all(made and made[-1].finish for n, made in told.items() if n != 5):
            break
    assert not lane.decoding or lane.decode() is None
    del told[5]
    return told


@pytest.mark.parametrize("blocks", [400, 14], ids=["roomy", "preempting"])
def test_chats_end_as_they_should(blocks: int, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding differs between the two, so what can be told is compared: how many tokens, how they end."""
    found = chat(runner, blocks, 24)
    monkeypatch.setattr(stepper, "_graphs", lambda *given: None)  # nor captured chunks
    expected = chat(runner, blocks, 24)
    for n, made in found.items():
        assert not any(one.error for one in made)
        assert [one.finish for one in made[:-1]] == [None] * (len(made) - 1)
        assert made[-1].finish == ("length" if len(made) == 1 + 5 * n % 40 and n % 4 != 3 else made[-1].finish)
    same = sum([one.token for one in made] == [one.token for one in expected[n]] for n, made in found.items())
    assert same >= 0.6 * len(found), "of the chats no more than a few meet a tie"


def test_a_decoder_on_a_gpu_is_made_of_our_kernels(runner: Runner) -> None:
    assert type(runner.backbone).__name__ == "FusedDecoder"
    assert type(attention.choose(CUDA)).__name__ == "PagedAttention"


def test_graphs_can_be_captured_when_all_before_are_gone() -> None:
    from lodger.runtime.graphs import captured

    for _ in range(3):  # models come and go, and their graphs with them
        total = torch.zeros(4, device=CUDA)
        graph = captured(lambda total=total: total.add_(torch.ones(4, device=CUDA)), CUDA)  # type: ignore[misc]
        graph.replay()
        assert total.tolist() == [1.0] * 4
        del graph
        torch.cuda.empty_cache()
