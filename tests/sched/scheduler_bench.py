"""The scheduler of chats with a fake model, as its tests use it."""

from __future__ import annotations

from fake_decoder import FakeDecoder, continuation

from lodger.sched.blocks import BlockPool
from lodger.sched.generate import GenerateScheduler
from lodger.sched.sequence import Sequence
from lodger.sched.step import GenerateStep


class Bench:
    """A scheduler with a fake model, run turn by turn like the real one."""

    def __init__(self, *, blocks: int = 64, block_size: int = 4, max_running: int = 8) -> None:
        self.pool = BlockPool(blocks, block_size)
        self.scheduler = GenerateScheduler(self.pool, max_running=max_running)
        self.model = FakeDecoder(blocks, block_size)
        self.sequences: dict[int, Sequence] = {}
        self.steps: list[GenerateStep] = []

    def add(self, *prompts: list[int], max_new_tokens: int = 4) -> None:
        for prompt in prompts:
            sequence = Sequence(len(self.sequences), prompt, max_new_tokens=max_new_tokens)
            self.sequences[sequence.id] = sequence
            self.scheduler.add(sequence)

    def prefill(self, budget: int = 1000) -> GenerateStep | None:
        return self._run(self.scheduler.next_prefill(budget))

    def decode(self, budget: int = 1000) -> GenerateStep | None:
        return self._run(self.scheduler.next_decode(budget))

    def drain(self, budget: int = 1000) -> None:
        """Turn until nothing is left, finishing every sequence that has all its tokens."""
        for _ in range(10_000):
            if not (self.scheduler.waiting or self.scheduler.running):
                self.pool.check()
                assert self.pool.free_count == self.pool.num_blocks
                return
            decoded, prefilled = self.decode(budget), self.prefill(budget)
            assert decoded or prefilled, "work is left and nothing runs"
            for sequence in self.sequences.values():
                if sequence.exhausted:
                    self.scheduler.finish(sequence.id)
        raise AssertionError("it never ends")

    def answers_are_right(self) -> bool:
        return all(
            s.generated == continuation(s.tokens[: s.prompt_length], s.max_new_tokens) for s in self.sequences.values()
        )

    def _run(self, step: GenerateStep | None) -> GenerateStep | None:
        if step is not None:
            self.steps.append(step)
            self.scheduler.complete(step, self.model.run(step))
        return step
