"""A model whose next token depends on every token before it, read through the block table from a paged cache.

So a wrong block, a block shared by mistake, or a chunk computed at the wrong place changes what it says.
"""

from __future__ import annotations

from collections.abc import Sequence

from lodger.sched.step import GenerateStep

VOCABULARY = 50


class FakeDecoder:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], int] = {}  # (block, slot) -> digest of all tokens up to there
        self.computed = 0  # tokens

    def run(self, step: GenerateStep) -> dict[int, int]:
        """Compute a step; the next token of each row that samples."""
        sampled = {}
        for row in step.rows:
            for place, token in enumerate(row.tokens, row.start):
                before = self._cache[self._slot(row.blocks, place - 1)] if place else 0
                self._cache[self._slot(row.blocks, place)] = _mix(before, token)
            self.computed += len(row.tokens)
            if row.sample:
                last = row.start + len(row.tokens) - 1
                sampled[row.sequence] = self._cache[self._slot(row.blocks, last)] % VOCABULARY
        return sampled

    def _slot(self, blocks: tuple[int, ...], place: int) -> tuple[int, int]:
        return blocks[place // self._block_size], place % self._block_size


def continuation(prompt: Sequence[int], length: int) -> list[int]:
    """What the fake model says after `prompt`, computed without any cache."""
    digest = 0
    for token in prompt:
        digest = _mix(digest, token)
    said: list[int] = []
    while len(said) < length:
        said.append(digest % VOCABULARY)
        digest = _mix(digest, said[-1])
    return said


def _mix(digest: int, token: int) -> int:
    return (digest * 1_000_003 + token * 7919 + 12345) % (2**61 - 1)
