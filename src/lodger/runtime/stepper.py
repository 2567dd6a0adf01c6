"""`Stepper`: the steps of one model's chats on its device. On a GPU they are launched and not waited for.

The tokens that a step chooses stay on the device, where the next step finds them, so that it can be launched before
the host knows them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from lodger.runtime import attention
from lodger.runtime.decoder import DenseDecoder
from lodger.runtime.kv import KVCache
from lodger.runtime.likely import Probable, asked, probabilities, unpack
from lodger.runtime.packed import PackedBatch, pack_rows
from lodger.runtime.recovery import where_memory_allows
from lodger.runtime.runner import Runner
from lodger.runtime.sampling import AT_ONCE, Free, Rules, Sampler, accept, choose
from lodger.runtime.upload import upload
from lodger.runtime.warm_steps import warm_steps
from lodger.sched.step import GenerateStep, Row

if TYPE_CHECKING:
    from lodger.runtime.chunk_graphs import ChunkGraphs
    from lodger.runtime.graphs import DecodeGraphs


class Launched(NamedTuple):
    """A step that the device computes now, or has computed."""

    step: GenerateStep
    chosen: torch.Tensor  # [rows with `sample`] int64 in RAM, once `done`
    done: torch.cuda.Event | None
    samplers: Sequence[Sampler]  # of these rows
    packed: torch.Tensor | None  # their log probabilities, where anybody asks

    def tokens(self) -> list[int]:
        """The next token of each row with `sample`. Waits for the device."""
        if self.done is not None:
            self.done.synchronize()
        tokens: list[int] = self.chosen.tolist()
        return tokens

    def likely(self) -> dict[int, Probable]:
        """What was probable where they were chosen, by their place among them, for those who ask; after `tokens`."""
        return {} if self.packed is None else unpack(self.packed, self.samplers)


class Stepper:
    """Holds the weights of `runner` only by a weak reference while it rests.

    Args:
        most: rows of one step.
    """

    def __init__(self, runner: Runner, cache: KVCache, most: int) -> None:
        self._runner, self._resting = runner, weakref.ref(runner)
        self._cache = cache
        self._on_gpu = runner.device.type == "cuda"
        self.overlaps = self._on_gpu  # the next step is launched before the tokens of one are known
        self._latest = torch.zeros(most, dtype=torch.int64, device=runner.device)  # what the last step chose
        self._places: dict[int, int] = {}  # sequence -> where its token is in there
        self._graphs = _graphs(runner, cache, self._latest)
        self._chunks = _chunks(runner, cache, self._graphs)

    @torch.inference_mode()
    def warm_up(self, step_tokens: int) -> None:
        """Steps of nobody's text: what steps of up to `step_tokens` need is built and loaded.

        All by single launches, since what is captured has run, and through few layers: those between are alike. The
        first tokens are chosen by probabilities, penalties, a bias and a mask, and told with their probabilities. Where
        memory is short it is left to the first requests, which are computed in parts then.
        """
        width, device = self._runner.facts.vocab_size, self._runner.device
        rules, guide = Rules(top_k=20, top_p=0.9, presence_penalty=1), Free(width)
        bound = Sampler(rules, 0, (0,), width, device, bias={0: 0.0}, guide=guide, logprobs=1)
        drawn, best = (Sampler(one, 0, (0,), width, device) for one in (rules, Rules(temperature=0)))
        size, runner, chunks = self._cache.block_size, self._runner, self._chunks
        longest = min(self._cache.blocks * size, runner.facts.context_length)
        self._runner, self._chunks = runner.shortened(), None
        steps = warm_steps(step_tokens, len(self._latest), longest, size)
        try:
            for rows in steps if self._graphs is not None else islice(steps, 2):  # our kernels are what is cut by size
                samplers = [bound, drawn, *[best] * len(rows)][: len(rows)]
                with where_memory_allows():
                    self.launch(GenerateStep("prefill", rows), samplers).tokens()
        finally:
            self._runner, self._chunks = runner, chunks

    def rest(self) -> None:
        """Let go of the weights, and keep what was captured, but for the logits."""
        del self._runner
        if self._graphs is not None:
            self._graphs.rest()

    def resume(self, runner: Runner) -> bool:
        """Go on with the weights from before. False: they or the cache have moved, and a new stepper is needed.

        Raises:
            MemoryError, torch.OutOfMemoryError: it rests on.
        """
        arenas = (runner.arena, self._cache.arena)
        if self._resting() is not runner or not all(arena is not None and arena.addresses_kept for arena in arenas):
            return False
        if self._graphs is not None and not self._graphs.resume():
            return False
        self._runner = runner
        return True

    @torch.inference_mode()
    def launch(self, step: GenerateStep, samplers: Sequence[Sampler]) -> Launched:
        """Compute a step. PENDING tokens are those that the step launched last has chosen.

        Where this fails, samplers are as before and the step may be launched again, in parts too. Tokens of the step
        before may be lost on the device then: the host has to fill them in.

        Args:
            samplers: of each row with `sample`.
        """
        sampled = [n for n, row in enumerate(step.rows) if row.sample]
        most = asked(samplers)
        if self._graphs is not None and self._graphs.serves(step):
            logits, best = self._graphs.run(step, self._places)
            chosen = choose(logits, samplers, best)
            told = [] if most is None else probabilities(logits, chosen, samplers, most)
        else:
            hidden = self._ends(self._pack(step.rows), sampled)
            chosen = self._latest[: len(sampled)]
            found, told = self._choose(hidden, samplers, most)
            chosen.copy_(found)
        packed = torch.cat(told) if told else None
        done = torch.cuda.Event() if self._on_gpu else None  # type: ignore[no-untyped-call]
        found = chosen.to("cpu", non_blocking=True) if done is not None else chosen.clone()
        packed = packed.to("cpu", non_blocking=True) if packed is not None else None
        if done is not None:
            done.record()
        accept(chosen, samplers)
        self._places = {step.rows[n].sequence: place for place, n in enumerate(sampled)}
        return Launched(step, found, done, samplers, packed)

    def _ends(self, batch: PackedBatch, wanted: Sequence[int]) -> torch.Tensor:
        """Hidden states of the last tokens of some of the batch's sequences."""
        if self._chunks is not None and self._chunks.serves(batch):
            last = upload([batch.offsets[n + 1] - 1 for n in wanted], torch.int64, self._runner.device)
            return self._chunks.run(batch).index_select(0, last)
        return self._runner.ends(batch, wanted, self._cache)

    def _choose(
        self, hidden: torch.Tensor, samplers: Sequence[Sampler], most: int | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The next token of each row of hidden states, and its log probabilities where `most` is a number. A GPU has
        memory for the logits of some rows at a time."""
        lm_head = self._runner.lm_head
        assert lm_head is not None
        count = AT_ONCE if self._on_gpu else max(len(samplers), 1)
        parts, told = [self._latest[:0]], []
        for at in range(0, len(samplers), count):
            logits, own = lm_head(hidden[at : at + count]), samplers[at : at + count]
            parts.append(choose(logits, own))
            if most is not None:
                told += probabilities(logits, parts[-1], own, most)
        return torch.cat(parts), told

    def _pack(self, rows: Sequence[Row]) -> PackedBatch:
        batch = pack_rows(rows, self._cache.block_size, self._runner.device)
        pending = [
            (end - 1, self._places[row.sequence])
            for row, end in zip(rows, batch.offsets[1:], strict=True)
            if row.pending
        ]
        if pending:
            at, places = upload(list(zip(*pending, strict=True)), torch.int64, self._runner.device)
            batch.tokens[at] = self._latest[places]
        return batch


def _graphs(runner: Runner, cache: KVCache, latest: torch.Tensor) -> DecodeGraphs | None:
    """Captured decode steps, where the model and the device allow them. Our kernels are imported only there."""
    kernels = attention.runs_kernels(runner.device) and isinstance(runner.backbone, DenseDecoder)
    if not kernels or runner.precision.compute == torch.float32:
        return None
    from lodger.runtime.graphs import DecodeGraphs

    return DecodeGraphs(runner, cache, latest)


def _chunks(runner: Runner, cache: KVCache, graphs: DecodeGraphs | None) -> ChunkGraphs | None:
    if graphs is None:
        return None
    from lodger.runtime.chunk_graphs import ChunkGraphs

    return ChunkGraphs(runner, cache, graphs)
